package main_test

import (
	"errors"
	"strings"
	"testing"

	"weir/backends/netlab"
)

// TestInputErrorsStayOnTheNode: what is wrong with the input is shown on the status socket and to clients on the node, and to
// nobody who asks at another of its addresses. Others see that the input is refused, and since when.
func TestInputErrorsStayOnTheNode(t *testing.T) {
	t.Parallel()
	d := newRunDaemon(t)
	d.write(map[string]string{"config.yaml": strings.ReplaceAll(kubeProxyConfig, "127.0.0.1", "0.0.0.0")})
	d.start()
	d.awaitSync()
	const secret = "hunter2"
	d.write(map[string]string{"bad.yaml": "apiVersion: v1\nkind: Service\nmetadata: {name: bad}\nspec: {clusterIP: " + secret + ", ports: [{port: 80}]}\n"})
	d.expectHTTP("http://127.0.0.1:10256/healthz", 200, secret)
	d.expectHTTP("http://127.0.0.1:10256/livez", 200, secret)
	d.await("weir status to tell it", func() error {
		out, err := d.askStatus()
		if err == nil && !strings.Contains(out, secret) {
			err = errors.New(out)
		}
		return err
	})
	for _, from := range []string{netlab.Outside, "pod1", netlab.Node} {
		for _, page := range []string{":10256/healthz", ":10256/livez", ":10249/healthz", ":10249/metrics", ":10249/proxyMode", ":10249/configz"} {
			out, err := d.lab.Host(from).Exec(t.Context(), "curl", "-s", "-m", "10", "http://"+netlab.NodeIPv4.String()+page)
			if err != nil || out == "" {
				t.Fatalf("%s from %s: %v %s", page, from, err, out)
			}
			if strings.Contains(out, secret) || strings.Contains(out, "bad.yaml") {
				t.Errorf("%s shows it to %s: %s", page, from, out)
			}
			if page == ":10256/healthz" && !strings.Contains(out, "refusedSince") {
				t.Errorf("%s does not tell %s that the input is refused: %s", page, from, out)
			}
		}
	}
}
