package spec

import (
	"fmt"
	"strconv"

	corev1 "k8s.io/api/core/v1"
)

// LockKind is the kind of the document, of apiVersion weir/v1alpha1, that pins what Services were allocated. LockFile is
// how weir allocate calls its file.
const (
	LockKind = "AllocationLock"
	LockFile = "weir.lock.yaml"
)

// Allocation is a value of a Service that its author left to weir.
type Allocation struct {
	What AllocationKind
	// Index is that of the address in spec.clusterIPs, or of the port in spec.ports.
	Index int
	// Pinned says that an AllocationLock has it, so that it never moves.
	Pinned bool
}

// AllocationKind says what is allocated.
type AllocationKind uint8

// What is allocated.
const (
	AllocatedClusterIP AllocationKind = iota
	AllocatedNodePort
	AllocatedHealthCheckNodePort
)

// Field returns the path of the field that the value is for.
func (a Allocation) Field() string {
	switch {
	case a.What == AllocatedNodePort:
		return fmt.Sprintf("spec.ports[%d].nodePort", a.Index)
	case a.What == AllocatedHealthCheckNodePort:
		return "spec.healthCheckNodePort"
	case a.Index > 0:
		return fmt.Sprintf("spec.clusterIPs[%d]", a.Index)
	}
	return "spec.clusterIP"
}

// Value returns the value, of the Service's Object.
func (a Allocation) Value(svc *corev1.Service) string {
	switch a.What {
	case AllocatedNodePort:
		return strconv.Itoa(int(svc.Spec.Ports[a.Index].NodePort))
	case AllocatedHealthCheckNodePort:
		return strconv.Itoa(int(svc.Spec.HealthCheckNodePort))
	}
	return svc.Spec.ClusterIPs[a.Index]
}
