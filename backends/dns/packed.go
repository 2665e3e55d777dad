package dns

import (
	"encoding/binary"
	"hash/maphash"

	"golang.org/x/net/dns/dnsmessage"
)

// The bounds of packedAnswers, in bytes: of one question, and of all together.
const (
	maxPackedQuestion = 320
	maxPacked         = 16 << 20
	// packedOverhead is what an answer costs besides its bytes, about.
	packedOverhead = 128
)

// packedAnswers are answers of the zone as they were sent. They save what a change of the zone does not bring about: a
// question that was asked before costs no allocation and a fifth of the time (BenchmarkNames). One goroutine at a time may
// use it.
type packedAnswers struct {
	serial  uint32 // of the zone that they come from
	answers map[string]packed
	size    int
	// seen are hashes of questions for what does not exist that were asked once. Only what is asked again is kept of those, so that
	// questions which no client repeats, as those of a flood, take no memory.
	seed maphash.Seed
	seen [1 << 14]uint32
}

// packed is the answer to a message, whose ID is that of another message.
type packed struct {
	reply []byte
	zone  uint8
	typ   dnsmessage.Type
}

// questionOf returns the part of a message that the answer depends on, which is all but the ID. It returns nil for a message that is
// too long to be kept.
func questionOf(msg []byte) []byte {
	if len(msg) < 12 || len(msg) > maxPackedQuestion {
		return nil
	}
	return msg[2:]
}

// get returns the answer to a message from a zone with this serial number.
func (p *packedAnswers) get(serial uint32, msg []byte) (a packed, ok bool) {
	if p.serial != serial {
		return a, false
	}
	a, ok = p.answers[string(questionOf(msg))]
	return a, ok
}

// again reports whether a question was asked before, which a short memory tells.
func (p *packedAnswers) again(question []byte) bool {
	if p.seed == (maphash.Seed{}) {
		p.seed = maphash.MakeSeed()
	}
	h := maphash.Bytes(p.seed, question)
	last := &p.seen[h%uint64(len(p.seen))]
	seen := *last == uint32(h>>32)
	*last = uint32(h >> 32)
	return seen
}

// put keeps a copy of the answer to a message, one that tells an error only if it is given again. Answers of another serial number, and
// all if there are too many, go.
func (p *packedAnswers) put(serial uint32, msg []byte, a packed) {
	question := questionOf(msg)
	cost := len(question) + len(a.reply) + packedOverhead
	if question == nil || serial == 0 || a.reply[3]&0xf != 0 && !p.again(question) {
		return
	}
	if p.serial != serial || p.answers == nil || p.size+cost > maxPacked {
		clear(p.answers)
		if p.answers == nil || p.size+cost > maxPacked {
			p.answers = map[string]packed{}
		}
		p.serial, p.size = serial, 0
	}
	a.reply = append([]byte(nil), a.reply...)
	p.answers[string(question)] = a
	p.size += cost
}

// appendReply appends the answer with the ID of a message.
func (a packed) appendReply(buf, msg []byte) []byte {
	start := len(buf)
	buf = append(buf, a.reply...)
	copy(buf[start:], msg[:2])
	return buf
}

// rotate puts other addresses of an answer first, so that clients that take the first one share the endpoints. It changes a
// reply that has nothing but addresses of one type in its answer, with one name that is the question's.
func rotate(reply []byte, by uint32) {
	n := int(binary.BigEndian.Uint16(reply[6:]))
	if n < 2 {
		return
	}
	start := 12
	for start < len(reply) && reply[start] != 0 {
		start += int(reply[start]) + 1
	}
	start += 5 // the end of the name, type and class
	if start+16 > len(reply) {
		return
	}
	size := 12 + int(binary.BigEndian.Uint16(reply[start+10:]))
	if start+n*size > len(reply) {
		return
	}
	records := reply[start : start+n*size]
	for at := 0; at < len(records); at += size {
		r := records[at:]
		t := dnsmessage.Type(binary.BigEndian.Uint16(r[2:]))
		if r[0] != 0xc0 || r[1] != 12 || t != dnsmessage.TypeA && t != dnsmessage.TypeAAAA || 12+int(binary.BigEndian.Uint16(r[10:])) != size {
			return
		}
	}
	turn := int(by%uint32(n)) * size
	turned := make([]byte, 0, maxUDPSize)
	turned = append(append(turned, records[turn:]...), records[:turn]...)
	copy(records, turned)
}
