// Package reconcile decides what the kernel should hold and lets a backend apply it.
//
// Data flows one way. Resolve turns a Service into ServicePorts for this node. The backend renders them to items. The
// tracker compares the items with those in the kernel, and the Engine has the backend apply the difference. The Loop
// alone knows the time; an Observer follows it.
//
// The package reads no files and knows no kernel interface. It does not import reconcile/tell, where logs, status and
// metrics are made of its Reports. cmd/weir and reconcile/tell import it.
package reconcile
