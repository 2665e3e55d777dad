package spec

import (
	"fmt"
	"strconv"

	corev1 "k8s.io/api/core/v1"
)

// LockKind is the kind of the document, of apiVersion weir/v1alpha1, that pins allocated values to Services. LockFile
// is the name of the file that weir allocate writes.
const (
	LockKind = "AllocationLock"
	LockFile = "weir.lock.yaml"
)

// Allocation is a value of a Service that weir chose because the Service's author left it out.
type Allocation struct {
	What AllocationKind
	// Index is the index of the address in spec.clusterIPs, or of the port in spec.ports.
	Index int
	// Pinned reports whether an AllocationLock pins the value, so that it never moves.
	Pinned bool
}

// AllocationKind is the kind of an allocated value.
type AllocationKind uint8

// The kinds of allocated values.
const (
	AllocatedClusterIP AllocationKind = iota
	AllocatedNodePort
	AllocatedHealthCheckNodePort
)

// Field returns the path of the field that holds the value.
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

// Value returns the value. It reads it from the Service's Object.
func (a Allocation) Value(svc *corev1.Service) string {
	switch a.What {
	case AllocatedNodePort:
		return strconv.Itoa(int(svc.Spec.Ports[a.Index].NodePort))
	case AllocatedHealthCheckNodePort:
		return strconv.Itoa(int(svc.Spec.HealthCheckNodePort))
	}
	return svc.Spec.ClusterIPs[a.Index]
}
