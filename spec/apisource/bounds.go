package apisource

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protowire"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// The bounds of what an API may say. A server that exceeds them is refused, and what is known stands.
//
// An answer to a list is read and decoded as a whole, so that its bytes and its values are bounded before that. A larger
// one is asked for again in pages. An event of a watch is bounded by client-go, at 16 MiB. All objects of a resource
// together are bounded by the memory that they need.
const (
	defaultMaxAnswer = 64 << 20
	defaultMaxHeld   = 256 << 20
	// pageSize is how many objects a page has, and maxPages how many pages a list.
	pageSize = 500
	maxPages = 10_000
	// maxValues is how many values one answer may have. An object costs as much as many values, even if it is empty.
	maxValues    = 4 << 20
	objectValues = 16
	// objectBytes is added to the encoded size of an object: it is what an empty one takes in memory.
	objectBytes = 1 << 10
	// maxError is the size of an answer that is an error, in bytes.
	maxError int64 = 1 << 20
	// maxMessage bounds the text of an error, which a server may choose.
	maxMessage = 500
)

var (
	errTooLarge = errors.New("the answer is larger than weir accepts")
	errTooMany  = errors.New("there are more objects than weir accepts")
)

// sized is an object that can tell its encoded size.
type sized interface{ Size() int }

// cost returns roughly how much memory an object takes.
func cost(o any) int64 {
	if s, ok := o.(sized); ok {
		return objectBytes + int64(s.Size())
	}
	return objectBytes
}

// boundedBody returns errTooLarge after so many bytes.
type boundedBody struct {
	io.ReadCloser
	left int64
}

// Read implements io.Reader.
func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errTooLarge
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// boundedSerializer decodes only what has a bounded number of values.
type boundedSerializer struct{ runtime.NegotiatedSerializer }

// DecoderToVersion implements runtime.NegotiatedSerializer.
func (s boundedSerializer) DecoderToVersion(d runtime.Decoder, gv runtime.GroupVersioner) runtime.Decoder {
	return boundedDecoder{s.NegotiatedSerializer.DecoderToVersion(d, gv)}
}

type boundedDecoder struct{ runtime.Decoder }

// Decode implements runtime.Decoder.
func (d boundedDecoder) Decode(data []byte, defaults *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	if len(data) > maxValues/objectValues && values(data) > maxValues {
		return nil, nil, errTooLarge
	}
	return d.Decoder.Decode(data, defaults, into)
}

// protobufPrefix begins each protobuf message of Kubernetes.
var protobufPrefix = []byte("k8s\x00")

// values estimates how many values an encoded object has, without decoding it.
func values(data []byte) int {
	if message, ok := bytes.CutPrefix(data, protobufPrefix); ok {
		n, _ := countFields(message, 0)
		return n
	}
	return objectValues/2*bytes.Count(data, []byte("{")) + bytes.Count(data, []byte(",")) + bytes.Count(data, []byte("["))
}

// countFields counts the fields of a protobuf message and of those inside it. A string may look like a message, and then
// counts as more than one. It returns false if the bytes are no message.
func countFields(b []byte, depth int) (n int, ok bool) {
	for len(b) > 0 {
		number, kind, size := protowire.ConsumeTag(b)
		if size < 0 {
			return 0, false
		}
		b = b[size:]
		if size = protowire.ConsumeFieldValue(number, kind, b); size < 0 {
			return 0, false
		}
		n++
		if kind == protowire.BytesType && depth < 6 {
			inner, _ := protowire.ConsumeBytes(b)
			if m, ok := countFields(inner, depth+1); ok {
				n += m
			}
		}
		if depth == 1 { // the objects of a list
			n += objectValues - 1
		}
		b = b[size:]
	}
	return n, true
}

// page changes the options of a list so that a server answers in pages. A server ignores the size of a page if any
// resourceVersion will do, because it then answers from memory.
func page(o *metav1.ListOptions) {
	o.Limit = pageSize
	if o.Continue == "" {
		o.ResourceVersion, o.ResourceVersionMatch = "", ""
	}
}

// brief is an error whose text is cut off.
type brief struct{ error }

// Error implements error.
func (b brief) Error() string {
	text := b.error.Error()
	if len(text) > maxMessage {
		text = fmt.Sprintf("%.*s...", maxMessage, text)
	}
	return text
}

// Unwrap returns the whole error.
func (b brief) Unwrap() error { return b.error }
