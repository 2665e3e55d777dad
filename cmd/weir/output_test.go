package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"reflect"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/vishvananda/netlink"

	"weir/backends/dataplane"
	"weir/backends/netlab"
	"weir/reconcile"
	"weir/reconcile/tell/changes"
	"weir/reconcile/tell/status"
	"weir/spec"
)

// fullStatus has something in every field.
func fullStatus() *status.Status {
	connections := uint64(1234)
	return &status.Status{
		APIVersion: status.APIVersion, Kind: "Status", Version: "v0.4.0", Node: "edge-7", Mode: "iptables", ModeReason: "IPVS is not available: modprobe ip_vs",
		Revision: "git:4f2a91c", Signer: "alice@example.com", InForce: "revision git:4f2a91c", Kept: "2026-01-01T00:00:00Z", ServiceRanges: []string{"10.96.0.0/12"},
		Refused: &status.Refused{Revision: "git:77b0d2e", Since: "2026-01-02T03:04:05Z",
			Errors: []string{"cluster/web.yaml:14: Service default/web: spec.ports[0].port: 0 is not between 1 and 65535"}},
		Away: []status.Away{{Source: "podman at /run/podman/podman.sock", Since: "2026-01-02T03:04:05Z", Error: "pods of podman at /run/podman/podman.sock: dial unix /run/podman/podman.sock: connect: connection refused", Stands: "3 pods that it told of last stay"}},
		LastSync: &status.Sync{Time: "2026-01-02T03:04:05.678Z", Reason: "input changed", Seconds: map[string]float64{"apply": 0.0171, "total": 0.0184},
			Created: 3, Updated: 2, Deleted: 1, Repaired: 1, Error: "iptables-restore: exit status 4"},
		DriftRepaired: 2, TrafficError: "it is not known",
		Notices: []changes.Warning{notice(spec.NoReadyEndpoint, 1, "web"), notice(spec.NoReadyEndpoint, 9, "api"), notice(spec.NoReadyEndpoint, 19, "db"),
			notice(spec.NoReadyEndpoint, 29, "log"), notice(spec.ExternalIPRefused, 1, "web")},
		Services: []status.Service{
			{Namespace: "default", Name: "web", Source: "cluster/web.yaml:1", Error: "the address is another virtual server's", Ports: []status.Port{{
				Name: "http", Protocol: "TCP", Family: "IPv4", Addresses: []string{"10.96.0.80:80", "node port 30080"}, Connections: &connections, Answered: true,
				Endpoints: []status.Endpoint{{Address: "10.244.1.1:8080", Weight: 1, State: "local"}, {Address: "10.244.2.1:8080", Weight: 3, State: "remote"},
					{Address: "10.244.2.2:8080", Weight: 1}, {Address: "10.244.2.3:8080", State: "drained"}},
			}}, Probes: &status.Probes{Healthy: 1, Unknown: 1, Unhealthy: 2, Awaited: 1, MinHealthy: "2", Panic: true, Endpoints: []status.ProbedEndpoint{
				{Address: "10.244.1.1:8080", Asked: "10.244.1.1:9090", State: "unhealthy", Since: "2026-01-02T03:04:05Z", Last: "failure", LastTime: "2026-01-02T03:05:05Z",
					Said: "status 500", Next: "2026-01-02T03:05:15Z", Probe: "httpGet :9090/ready every 10s, timeout 1s, 3 failures, 1 success", From: "readinessProbe of Deployment default/web, container web, cluster/web.yaml:30"},
				{Address: "10.244.2.1:8080", State: "awaited", Probe: "tcpSocket every 2s, timeout 1s, 3 failures, 1 success", From: "annotation of Service default/web, cluster/web.yaml:1"},
			}}},
			{Namespace: "kube-system", Name: "dns", Ports: []status.Port{{Protocol: "UDP", Family: "IPv6", Addresses: []string{"[fd00:10:96::a]:53"}, Endpoints: []status.Endpoint{}}}},
		},
	}
}

func notice(id spec.NoticeID, line int, service string) changes.Warning {
	return changes.Warning{Notice: id.Notice(spec.Origin{File: "web.yaml", Line: line}, "Service default/"+service, "", "has no endpoints")}
}

// TestStatusFormats prints a Status that has something in every field.
func TestStatusFormats(t *testing.T) {
	requireFilled(t, "Status", reflect.ValueOf(fullStatus()))
	for _, format := range []string{"text", "json"} {
		var out bytes.Buffer
		ask := func(context.Context) (*status.Status, error) {
			s := fullStatus()
			s.AskedBy("v0.5.0")
			return s, nil
		}
		if err := showStatus(t.Context(), &out, format, false, "", ask); err != nil {
			t.Fatal(err)
		}
		golden(t, "status."+format, out.String())
		if format == "json" {
			checkSchema(t, "status.schema.json", out.Bytes())
		}
	}
}

// TestOutcomeFormats prints the outcome of a round that was not all that was asked for.
func TestOutcomeFormats(t *testing.T) {
	r := reconcile.Report{Mode: "nftables", Revision: "git:4f2a91c", Services: 2, Created: 3, Updated: 2, Deleted: 1, Err: errors.New("the table is gone"),
		Stages:   reconcile.Stages{Observe: 1500 * time.Microsecond, Apply: 17100 * time.Microsecond, Total: 18600 * time.Microsecond},
		HeldBack: []reconcile.HeldBack{{Service: dataplane.ServiceName{Namespace: "default", Name: "web"}, Origin: "web.yaml:1", Err: errors.New("refused")}}}
	for _, format := range []string{"text", "json"} {
		var cmd cobra.Command
		var out, errOut bytes.Buffer
		cmd.SetOut(&out)
		cmd.SetErr(&errOut)
		if err := printReport(&cmd, &r, format); !errors.Is(err, r.Err) {
			t.Errorf("%s: %v", format, err)
		}
		if format == "text" {
			out.Write(errOut.Bytes())
		} else {
			checkSchema(t, "outcome.schema.json", out.Bytes())
		}
		golden(t, "outcome."+format, out.String())
	}
}

// requireFilled fails for fields that are zero in v; of a slice, its first element counts.
func requireFilled(t *testing.T, path string, v reflect.Value) {
	t.Helper()
	if v.Type() == reflect.TypeFor[changes.Warning]() {
		return // a value of another package, with its own JSON
	}
	if v.IsZero() {
		t.Errorf("%s is empty", path)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		requireFilled(t, path, v.Elem())
	case reflect.Slice:
		requireFilled(t, path+"[0]", v.Index(0))
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() {
				requireFilled(t, path+"."+f.Name, v.Field(i))
			}
		}
	}
}

// TestPlanAgainstKernel prints what a dry run finds on a node that holds nothing yet and has an IPv4 address only, down to
// the rules.
func TestPlanAgainstKernel(t *testing.T) {
	netlab.Require(t)
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	address := &netlink.Addr{IPNet: netlink.NewIPNet(net.IPv4(192, 0, 2, 7))}
	if err := netlink.AddrAdd(lo, address); err != nil {
		t.Fatal(err)
	}
	defer netlink.AddrDel(lo, address)
	for _, format := range []string{"text", "json", "markdown"} {
		t.Run(format, func(t *testing.T) {
			out, errOut, code := weirCommand(t, "reconcile", "--dry-run", "--detail", "rules", "-f", "kernel.yaml", "--hostname-override", "edge-7", "-o", format,
				"--log-level", "error", "--state-dir", t.TempDir())
			if code != exitFailure || errOut != "" {
				t.Errorf("exit code %d for a Service that cannot be programmed; stderr: %s", code, errOut)
			}
			golden(t, "kernel."+format, out)
			if format == "json" {
				checkSchema(t, "plan.schema.json", []byte(out))
			}
		})
	}
}
