package health

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// TestInForce has what /healthz and /livez say of every state in which an input may be.
func TestInForce(t *testing.T) {
	const local, remote = "127.0.0.1:1234", "192.0.2.1:1234"
	bad := errors.New("a.yaml:1: secret")
	at := time.Unix(1_700_000_000, 0)
	refuse := func(p *Proxy) { p.SetInputError(bad, at); p.SetInputError(bad, at.Add(time.Hour)) }
	for _, c := range []struct {
		name           string
		do             func(p *Proxy)
		from           string
		healthz, livez int
		inForce        string
		refused, why   bool
	}{
		{"nothing read yet", func(*Proxy) {}, local, 200, 200, Nothing, false, false},
		{"refused, and nothing is in force", refuse, local, 503, 200, Nothing, true, true},
		{"refused, asked from another host", refuse, remote, 503, 200, Nothing, true, false},
		{"refused, asked over IPv6", refuse, "[::1]:1234", 503, 200, Nothing, true, true},
		{"refused, and the kernel holds what an earlier run left", func(p *Proxy) { refuse(p); p.SetEarlier("rules") }, local, 200, 200, "rules", true, true},
		{"refused after a good one", func(p *Proxy) { p.Applied(at, "r1"); refuse(p) }, local, 200, 200, "revision r1", true, true},
		{"a round failed, and nothing is in force", func(p *Proxy) { p.Failed(at) }, local, 503, 200, Nothing, false, false},
		{"a round failed, and the kernel holds what an earlier run left", func(p *Proxy) { p.SetEarlier("rules"); p.Failed(at) }, local, 200, 200, "rules", false, false},
		{"a round failed after a good one", func(p *Proxy) { p.Applied(at, "r1"); p.Failed(at) }, local, 200, 200, "revision r1", false, false},
		{"a round failed, and the next did not", func(p *Proxy) { p.Failed(at); p.Applied(at, "r1") }, local, 200, 200, "revision r1", false, false},
		{"good again", func(p *Proxy) { refuse(p); p.SetInputError(nil, at); p.Applied(at, "r2") }, local, 200, 200, "revision r2", false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var p Proxy
			c.do(&p)
			for path, h := range map[string]struct {
				http.Handler
				code int
			}{"/healthz": {p.serveHealthz(nil), c.healthz}, "/livez": {p.serveLivez(nil), c.livez}} {
				r, w := httptest.NewRequest(http.MethodGet, path, nil), httptest.NewRecorder()
				r.RemoteAddr = c.from
				h.ServeHTTP(w, r)
				var got healthz
				if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
					t.Fatal(err)
				}
				since := ""
				if c.refused {
					since = at.UTC().Format(time.RFC3339)
				}
				if w.Code != h.code || got.InForce != c.inForce || got.RefusedSince != since || (got.InputError != "") != c.why {
					t.Errorf("%s: %d %s", path, w.Code, w.Body)
				}
			}
		})
	}
}
