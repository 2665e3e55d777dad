package manifest

import (
	"bytes"
	"maps"
	"strings"
)

// silenceComment begins a comment at the head of a file that lists the notices accepted for everything in the file.
const silenceComment = "weir:silence"

// silence brings the index of the comments that silence notices up to date.
func (u *update) silence(files []File) {
	for _, f := range files {
		switch list := silencedBy(f.Data); {
		case list == u.silences[f.Path]:
		case list == "":
			remove(&u.undo, u.silences, f.Path)
		default:
			put(&u.undo, u.silences, f.Path, list)
		}
	}
}

// silenced returns the index for a Snapshot, which is the one of the last Snapshot if it did not change.
func (u *update) silenced() map[string]string {
	if u.last != nil && maps.Equal(u.last.Silenced, u.silences) {
		return u.last.Silenced
	}
	return maps.Clone(u.silences)
}

// silencedBy returns the notices that the comments at the head of a file silence, separated by commas.
func silencedBy(data []byte) string {
	var lists []string
	for line := range bytes.Lines(bytes.TrimPrefix(data, []byte("\ufeff"))) {
		line = bytes.TrimSpace(line)
		comment, isComment := bytes.CutPrefix(line, []byte("#"))
		switch {
		case isComment:
			text := strings.TrimSpace(string(comment))
			if list, ok := strings.CutPrefix(text, silenceComment); ok {
				lists = append(lists, strings.TrimSpace(strings.TrimPrefix(list, ":")))
			}
		case len(line) > 0 && !bytes.HasPrefix(line, []byte("---")) && line[0] != '%':
			return strings.Join(lists, ",")
		}
	}
	return strings.Join(lists, ",")
}
