package nfnl

import (
	"reflect"
	"testing"

	"golang.org/x/sys/unix"
)

// TestObjectsSurviveTheWire expects to parse from a message the object that was written into it.
func TestObjectsSurviveTheWire(t *testing.T) {
	table := Table{Family: unix.NFPROTO_IPV6, Name: "t"}
	set := Set{Name: "s", Flags: SetConcat | unix.NFT_SET_MAP, KeyType: 5, KeyLen: 8, DataType: 7, DataLen: 4, Fields: []uint32{4, 2}, Size: 9, Userdata: []byte{1}}
	if got := ParseSet(NewSet(table, set).Data[4:]); !reflect.DeepEqual(got, set) {
		t.Errorf("%+v, want %+v", got, set)
	}
	chain := Chain{Name: "c", Hook: &Hook{"nat", 3, -100}, Policy: PolicyAccept, Userdata: []byte{2, 3}}
	if got, in := ParseChain(NewChain(table, chain).Data[4:]); !reflect.DeepEqual(got, chain) || in != table.Name {
		t.Errorf("%+v in %s, want %+v", got, in, chain)
	}
	elements := []Element{
		{Key: []byte{1, 2, 3, 4}, Value: []byte{5, 6, 7, 8}, Comment: "default/web"},
		{Key: []byte{1}, End: []byte{2}, Verdict: &Verdict{Code: Goto, Chain: "c"}},
		{Verdict: &Verdict{Code: Drop}},
	}
	list := AddTo(table, set.Name)
	for _, x := range elements {
		list.Append(x)
	}
	var got []Element
	for _, m := range list.Messages() {
		ParseElements(m.Data[4:], func(x Element) { got = append(got, x) })
	}
	if !reflect.DeepEqual(got, elements) {
		t.Errorf("%+v, want %+v", got, elements)
	}
}

// TestLongListsAreSplit expects that no message has a list of elements longer than an attribute can be.
func TestLongListsAreSplit(t *testing.T) {
	list := DeleteFrom(Table{Family: unix.NFPROTO_IPV4, Name: "t"}, "s")
	for range 5000 {
		list.Append(Element{Key: make([]byte, 40)})
	}
	messages, count := list.Messages(), 0
	for _, m := range messages {
		if len(m.Data) > 1<<16 {
			t.Errorf("a message of %d bytes", len(m.Data))
		}
		ParseElements(m.Data[4:], func(Element) { count++ })
	}
	if len(messages) < 2 || count != 5000 || BatchSize(messages) < list.Size {
		t.Errorf("%d elements in %d messages of %d bytes", count, len(messages), list.Size)
	}
}

// FuzzParse expects that parsing does not panic, whatever the bytes of a message are.
func FuzzParse(f *testing.F) {
	f.Add(NewChain(Table{Family: unix.NFPROTO_IPV4, Name: "t"}, Chain{Name: "c", Hook: &Hook{"nat", 3, -100}}).Data)
	f.Add(FlushSet(Table{Family: unix.NFPROTO_IPV4, Name: "t"}, "s").Data)
	f.Fuzz(func(t *testing.T, data []byte) {
		ParseSet(body(data))
		ParseChain(body(data))
		_ = ParseRule(body(data)).Canonical()
		ParseElements(body(data), func(Element) {})
		ParseNotification(unix.NFT_MSG_NEWSETELEM, data).Keys(func([]byte) {})
		ParseNotification(unix.NFT_MSG_NEWGEN, data)
		_ = answerError(reply{data: data, flags: unix.NLM_F_ACK_TLVS})
	})
}
