package dns

import (
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/dns/dnsmessage"
)

// Metrics counts what the servers of a process answer, with the names and labels of CoreDNS. It is a prometheus.Collector,
// and safe for concurrent use. Counting costs a few atomic additions for each question.
type Metrics struct {
	mu      sync.Mutex
	servers map[string]*counters
	// Upstreams, if set, has the counters of the cache.
	Upstreams *Upstreams
}

// The zones that are counted apart: those of a Resolver, and all others.
const (
	zoneOwn = iota
	zoneReverse4
	zoneReverse6
	zoneOther
	zoneCount
)

// countedTypes are counted apart, as in CoreDNS. The last stands for all others.
var countedTypes = [...]string{"A", "AAAA", "CNAME", "MX", "NS", "PTR", "SOA", "SRV", "TXT", "HTTPS", "SVCB", "ANY", "AXFR", "other"}

var typeIndex = map[dnsmessage.Type]uint8{
	dnsmessage.TypeA: 0, dnsmessage.TypeAAAA: 1, dnsmessage.TypeCNAME: 2, dnsmessage.TypeMX: 3, dnsmessage.TypeNS: 4, dnsmessage.TypePTR: 5,
	dnsmessage.TypeSOA: 6, dnsmessage.TypeSRV: 7, dnsmessage.TypeTXT: 8, 65: 9, 64: 10, dnsmessage.TypeALL: 11, dnsmessage.TypeAXFR: 12,
}

// rcodes are the names of the response codes in labels.
var rcodes = [...]string{"NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"}

// The upper bounds of the histograms, those of CoreDNS: seconds, and bytes.
var (
	durationBounds = [...]float64{.00025, .0005, .001, .002, .004, .008, .016, .032, .064, .128, .256, .512, 1.024, 2.048, 4.096, 8.192}
	sizeBounds     = [...]float64{0, 100, 200, 300, 400, 511, 1023, 2047, 4095, 8291, 16e3, 32e3, 48e3, 64e3}
)

// counters are those of one server. The index proto is 1 for TCP, and family 1 for IPv6.
type counters struct {
	domain    string
	requests  [zoneCount][2][2][len(countedTypes)]atomic.Uint64 // zone, proto, family, type
	responses [zoneCount][len(rcodes)]atomic.Uint64
	duration  [zoneCount]histogram
	size      [zoneCount][2]histogram
	limited   atomic.Uint64
	rejected  atomic.Uint64
	away      atomic.Uint64
}

// histogram has room for the larger of the two sets of bounds.
type histogram struct {
	buckets [len(durationBounds) + 1]atomic.Uint64
	sum     atomic.Uint64 // in nanoseconds or bytes
}

func (h *histogram) observe(bounds []float64, value float64, whole uint64) {
	i := 0
	for i < len(bounds) && value > bounds[i] {
		i++
	}
	h.buckets[i].Add(1)
	h.sum.Add(whole)
}

// server returns the counters of the server at an address.
func (m *Metrics) server(at netip.AddrPort, domain string) *counters {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.servers == nil {
		m.servers = map[string]*counters{}
	}
	name := "dns://" + at.String()
	if m.servers[name] == nil {
		m.servers[name] = &counters{domain: domain}
	}
	return m.servers[name]
}

// zoneIndex returns the zone that a name is counted with.
func (r *Resolver) zoneIndex(name string) uint8 {
	switch zone := r.Mine(name); {
	case zone == "":
		return zoneOther
	case len(zone) == len(r.Domain) && strings.EqualFold(zone, r.Domain):
		return zoneOwn
	case len(zone) == len(reverse4):
		return zoneReverse4
	}
	return zoneReverse6
}

// client says where a message came from.
type client struct {
	addr netip.Addr
	tcp  bool
	at   time.Time
}

func (c *client) proto() int {
	if c.tcp {
		return 1
	}
	return 0
}

func (c *counters) asked(from *client, zone uint8, t dnsmessage.Type) {
	if c == nil {
		return
	}
	kind, ok := typeIndex[t]
	if !ok {
		kind = uint8(len(countedTypes) - 1)
	}
	family := 0
	if from.addr.Is6() && !from.addr.Is4In6() {
		family = 1
	}
	c.requests[zone][from.proto()][family][kind].Add(1)
}

func (c *counters) replied(from *client, zone uint8, reply []byte) {
	if c == nil || len(reply) < 4 {
		return
	}
	if rcode := int(reply[3] & 0xf); rcode < len(rcodes) {
		c.responses[zone][rcode].Add(1)
	}
	took := time.Since(from.at)
	c.duration[zone].observe(durationBounds[:], took.Seconds(), uint64(took))
	c.size[zone][from.proto()].observe(sizeBounds[:], float64(len(reply)), uint64(len(reply)))
}

func (c *counters) limit() {
	if c != nil {
		c.limited.Add(1)
	}
}

func (c *counters) turnAway() {
	if c != nil {
		c.away.Add(1)
	}
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	requestsDesc  = desc("coredns_dns_requests_total", "DNS questions.", "server", "zone", "view", "proto", "family", "type")
	responsesDesc = desc("coredns_dns_responses_total", "DNS replies by their response code.", "server", "zone", "view", "rcode")
	durationDesc  = desc("coredns_dns_request_duration_seconds", "Time from a question to its reply.", "server", "zone", "view")
	sizeDesc      = desc("coredns_dns_response_size_bytes", "Size of replies.", "server", "zone", "view", "proto")
	rejectsDesc   = desc("coredns_forward_max_concurrent_rejects_total", "Questions that failed because too many waited for resolvers.")
	entriesDesc   = desc("coredns_cache_entries", "Answers of resolvers that are kept.")
	lookupsDesc   = desc("coredns_cache_requests_total", "Questions for names elsewhere.")
	hitsDesc      = desc("coredns_cache_hits_total", "Questions for names elsewhere that a kept answer was for.")
	staleDesc     = desc("coredns_cache_served_stale_total", "Questions that were answered after the time of the answer, because no resolver answered.")
	prefetchDesc  = desc("coredns_cache_prefetch_total", "Kept answers that were asked for again ahead of their end, because they are asked for often.")
	limitedDesc   = desc("weir_dns_rate_limited_total", "Replies that were cut to ask the client for TCP, because it asks too often.", "server")
	awayDesc      = desc("weir_dns_not_allowed_total", "Questions over UDP and connections over TCP of clients that may not ask.", "server")
)

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{requestsDesc, responsesDesc, durationDesc, sizeDesc, rejectsDesc, entriesDesc, lookupsDesc, hitsDesc, staleDesc, prefetchDesc, limitedDesc, awayDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. It leaves out what was never counted.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	rejected := uint64(0)
	for name, c := range m.servers {
		rejected += c.rejected.Load()
		c.collect(ch, name)
	}
	if len(m.servers) == 0 || m.Upstreams == nil {
		return
	}
	counter := func(d *prometheus.Desc, n uint64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n))
	}
	counter(rejectsDesc, rejected)
	counter(lookupsDesc, m.Upstreams.lookups.Load())
	counter(hitsDesc, m.Upstreams.hits.Load())
	counter(staleDesc, m.Upstreams.stale.Load())
	counter(prefetchDesc, m.Upstreams.prefetched.Load())
	ch <- prometheus.MustNewConstMetric(entriesDesc, prometheus.GaugeValue, float64(m.Upstreams.cache.Len()))
}

func (c *counters) collect(ch chan<- prometheus.Metric, server string) {
	protos, families := [2]string{"udp", "tcp"}, [2]string{"1", "2"}
	for zone, zoneName := range [zoneCount]string{c.domain, reverse4, reverse6, "."} {
		for proto := range protos {
			for family := range families {
				for kind, kindName := range countedTypes {
					if n := c.requests[zone][proto][family][kind].Load(); n > 0 {
						ch <- prometheus.MustNewConstMetric(requestsDesc, prometheus.CounterValue, float64(n), server, zoneName, "", protos[proto], families[family], kindName)
					}
				}
			}
			c.size[zone][proto].collect(ch, sizeDesc, sizeBounds[:], 1, server, zoneName, "", protos[proto])
		}
		for rcode, rcodeName := range rcodes {
			if n := c.responses[zone][rcode].Load(); n > 0 {
				ch <- prometheus.MustNewConstMetric(responsesDesc, prometheus.CounterValue, float64(n), server, zoneName, "", rcodeName)
			}
		}
		c.duration[zone].collect(ch, durationDesc, durationBounds[:], float64(time.Second), server, zoneName, "")
	}
	ch <- prometheus.MustNewConstMetric(limitedDesc, prometheus.CounterValue, float64(c.limited.Load()), server)
	ch <- prometheus.MustNewConstMetric(awayDesc, prometheus.CounterValue, float64(c.away.Load()), server)
}

func (h *histogram) collect(ch chan<- prometheus.Metric, d *prometheus.Desc, bounds []float64, unit float64, labels ...string) {
	buckets, total := make(map[float64]uint64, len(bounds)), uint64(0)
	for i := range bounds {
		total += h.buckets[i].Load()
		buckets[bounds[i]] = total
	}
	if total += h.buckets[len(bounds)].Load(); total > 0 {
		ch <- prometheus.MustNewConstHistogram(d, total, float64(h.sum.Load())/unit, buckets, labels...)
	}
}
