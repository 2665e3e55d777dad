package probe

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/net/http/httpguts"
)

// userAgent begins as the kubelet's does, because servers tell probes from users by it.
const userAgent = "kube-probe/1.37 weir"

// maxRedirects is as many as the kubelet follows.
const maxRedirects = 10

// readBuffer is the size of the buffer of a connection.
const readBuffer = 1 << 10

// buffers are what reading an answer takes. Probes use them one after the other.
type buffers struct {
	head *bufio.Reader
	body bytes.Buffer
}

var spare = sync.Pool{New: func() any { return &buffers{head: bufio.NewReaderSize(nil, readBuffer)} }}

// connectionKey is the key of the *connection in the context of a request.
type connectionKey struct{}

// plain is for redirects of Probes without TLS. It keeps no connection.
var plain = newTransport(false)

func newTransport(only2 bool) *http.Transport {
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			_, port, err := net.SplitHostPort(address) // the host is that of the endpoint, as redirect sees to
			n, err2 := strconv.ParseUint(port, 10, 16)
			if err = errors.Join(err, err2); err != nil {
				return nil, err
			}
			return ctx.Value(connectionKey{}).(*connection).dialTo(ctx, uint16(n))
		},
		TLSClientConfig:    &tls.Config{InsecureSkipVerify: true},
		DisableKeepAlives:  true,
		DisableCompression: true,
		ForceAttemptHTTP2:  true,
		// The kubelet takes 10 MB. No server says so much before its answer, unless it means harm.
		MaxResponseHeaderBytes: maxHeader,
		ReadBufferSize:         readBuffer,
		WriteBufferSize:        1 << 10,
	}
	if only2 {
		t.Protocols = new(http.Protocols)
		t.Protocols.SetHTTP2(true)
		t.Protocols.SetUnencryptedHTTP2(true)
	}
	return t
}

// RoundTrip implements http.RoundTripper. It does what an http.Transport without kept connections does over HTTP/1 without TLS, at
// half the cost: the request and the answer need no goroutines of their own, because the connection has no other use. What is
// asked and how an answer is read is up to net/http.
func (c *connection) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "http" { // a redirect
		return plain.RoundTrip(req)
	}
	port := uint64(80)
	if p := req.URL.Port(); p != "" {
		var err error
		if port, err = strconv.ParseUint(p, 10, 16); err != nil {
			return nil, err
		}
	}
	for name, values := range req.Header {
		if !httpguts.ValidHeaderFieldName(name) {
			return nil, fmt.Errorf("invalid header field name %q", name)
		}
		if slices.ContainsFunc(values, func(v string) bool { return !httpguts.ValidHeaderFieldValue(v) }) {
			return nil, fmt.Errorf("invalid header field value for %q", name)
		}
	}
	conn, err := c.stream(uint16(port))
	if err != nil {
		return nil, err
	}
	var head bytes.Buffer
	if err := req.Write(&head); err != nil {
		return nil, err
	}
	if !httpguts.HeaderValuesContainsToken(req.Header["Connection"], "close") && !switchesProtocol(req.Header) {
		head.Truncate(head.Len() - len("\r\n"))
		head.WriteString("Connection: close\r\n\r\n")
	}
	if _, err := conn.Write(head.Bytes()); err != nil {
		return nil, err
	}
	limited := &io.LimitedReader{R: conn, N: maxHeader}
	answer := c.buffers.head
	answer.Reset(limited)
	if _, err := answer.Peek(1); err != nil {
		return nil, err
	}
	for {
		res, err := http.ReadResponse(answer, req)
		switch {
		case err != nil && limited.N == 0:
			return nil, fmt.Errorf("more than %d bytes before the answer", maxHeader)
		case err != nil:
			return nil, err
		case res.StatusCode < http.StatusOK && res.StatusCode >= http.StatusContinue && res.StatusCode != http.StatusSwitchingProtocols:
			continue // what comes before an answer
		}
		limited.N = math.MaxInt64
		body := io.Reader(res.Body)
		if res.StatusCode == http.StatusSwitchingProtocols && switchesProtocol(res.Header) {
			body = answer
		}
		res.Body = io.NopCloser(body) // net/http's own reads all that the server sends before it closes
		return res, nil
	}
}

// switchesProtocol reports whether a header asks for another protocol on the connection, or agrees to one.
func switchesProtocol(h http.Header) bool {
	return h.Get("Upgrade") != "" && httpguts.HeaderValuesContainsToken(h["Connection"], "Upgrade")
}

// http sends a GET request. The verdict is the kubelet's: 200 to 399 is success, a redirect to another host too.
func (p *Probe) http(c *connection) (r Result) {
	c.buffers = spare.Get().(*buffers)
	defer func() {
		c.buffers.head.Reset(nil)
		c.buffers.body.Reset()
		spare.Put(c.buffers)
	}()
	ctx := context.WithValue(c.ctx, connectionKey{}, c)
	req, err := p.request(ctx, c.at)
	if err != nil {
		return unknown(err.Error())
	}
	client := http.Client{Transport: c, CheckRedirect: p.redirect}
	if p.TLS || p.HTTP2 { // several requests may share a connection of HTTP/2, and Probes must not
		client.Transport = newTransport(p.HTTP2)
	}
	res, err := client.Do(req)
	if err != nil {
		return failure(p.fault(c.ctx, unwrapped(err)))
	}
	defer res.Body.Close()
	body := &c.buffers.body
	if _, err := body.ReadFrom(io.LimitReader(res.Body, maxBody)); err != nil { // the kubelet takes no account of an answer that is cut
		return unknown(fmt.Sprintf("status %d, and the answer is cut: %s", res.StatusCode, p.fault(c.ctx, err)))
	}
	if c.to.Body {
		defer func() { r.Body = printable(body.String(), maxMessage) }()
	}
	switch {
	case !p.succeeds(res.StatusCode):
		return failure("status " + strconv.Itoa(res.StatusCode))
	case !p.expects(body.Bytes()):
		return failure(fmt.Sprintf("status %d, and the answer has no %q", res.StatusCode, p.Expect))
	case p.Statuses == nil && res.StatusCode >= http.StatusMultipleChoices && res.Header.Get("Location") != "":
		return success(fmt.Sprintf("status %d, a redirect to %s that is not followed", res.StatusCode, res.Header.Get("Location")))
	}
	return success("status " + strconv.Itoa(res.StatusCode))
}

func (p *Probe) expects(body []byte) bool {
	if p.ExpectWithin > 0 {
		body = body[:min(len(body), p.ExpectWithin)]
	}
	return bytes.Contains(body, []byte(p.Expect))
}

func (p *Probe) succeeds(status int) bool {
	if p.Statuses == nil {
		return status >= http.StatusOK && status < http.StatusBadRequest
	}
	return slices.ContainsFunc(p.Statuses, func(s Statuses) bool { return s.Min <= status && status <= s.Max })
}

// redirect follows a redirect as the kubelet does. A connection goes to the address of the endpoint whatever the redirect says.
func (p *Probe) redirect(req *http.Request, via []*http.Request) error {
	if p.Statuses != nil || req.URL.Hostname() != via[0].URL.Hostname() {
		return http.ErrUseLastResponse
	}
	if len(via) >= maxRedirects {
		return errors.New("stopped after 10 redirects")
	}
	return nil
}

func (p *Probe) request(ctx context.Context, at netip.AddrPort) (*http.Request, error) {
	u, err := url.Parse(p.Path)
	if err != nil { // the kubelet escapes what is no path
		u = &url.URL{Path: p.Path}
	}
	u.Scheme = "http"
	if p.TLS {
		u.Scheme = "https"
	}
	u.Host = at.String()
	if p.Host != "" {
		u.Host = net.JoinHostPort(p.Host, strconv.Itoa(int(at.Port())))
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for _, h := range p.Headers {
		req.Header.Add(h.Name, h.Value)
	}
	if _, ok := req.Header["User-Agent"]; !ok {
		req.Header.Set("User-Agent", userAgent)
	}
	if values, ok := req.Header["Accept"]; !ok {
		req.Header.Set("Accept", "*/*")
	} else if values[0] == "" {
		req.Header.Del("Accept")
	}
	req.Host = req.Header.Get("Host")
	return req, nil
}

// unwrapped returns the error without the URL that the client adds.
func unwrapped(err error) error {
	var e *url.Error
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}
