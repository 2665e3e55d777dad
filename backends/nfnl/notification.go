package nfnl

import "golang.org/x/sys/unix"

// Notification is one change that a commit made.
type Notification struct {
	Type  uint16 // unix.NFT_MSG_*
	Table Table
	// Name is the set that was written, or that has the written elements.
	Name string
	// Generation is the generation after the commit. Only the last notification of a commit has it
	// (unix.NFT_MSG_NEWGEN).
	Generation uint32

	elements []byte
}

// ParseNotification parses a notification. Its bytes share the memory of data.
func ParseNotification(typ uint16, data []byte) Notification {
	n := Notification{Type: typ}
	if len(data) < 4 {
		return n
	}
	if typ == unix.NFT_MSG_NEWGEN {
		n.Generation = parseGeneration(data)
		return n
	}
	n.Table.Family = data[0]
	// All notifications have the table's name as attribute 1. The meaning of 2 and 3 depends on the message.
	Attributes(body(data), func(attr uint16, value []byte) {
		switch attr {
		case 1:
			n.Table.Name = cString(value)
		case 2:
			n.Name = cString(value)
		case 3:
			n.elements = value
		}
	})
	return n
}

// Keys calls f with the keys of the elements that were written, nil for the catchall element.
func (n Notification) Keys(f func(key []byte)) {
	if n.Type != unix.NFT_MSG_NEWSETELEM && n.Type != unix.NFT_MSG_DELSETELEM {
		return
	}
	Attributes(n.elements, func(_ uint16, item []byte) { f(ParseElement(item).Key) })
}
