package manifest

import (
	"bytes"
	"maps"
	"regexp"
	"strings"

	"weir/spec"
)

// silenceComment begins a comment at the head of a file that lists the notices accepted for everything in the file.
const silenceComment = "weir:silence"

// silence brings the indexes of the comments that silence notices, and of those that are wrong, up to date.
func (u *update) silence(files []File) {
	for _, f := range files {
		list, faults := headOf(f.Path, f.Data)
		switch {
		case list == u.silences[f.Path]:
		case list == "":
			remove(&u.undo, u.silences, f.Path)
		default:
			put(&u.undo, u.silences, f.Path, list)
		}
		switch {
		case len(faults) > 0:
			put(&u.undo, u.badHeads, f.Path, faults)
		case len(u.badHeads[f.Path]) > 0:
			remove(&u.undo, u.badHeads, f.Path)
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

// headOf returns the notices that the comments at the head of a file silence, separated by commas, and notices of comments
// that have no effect.
func headOf(file string, data []byte) (silenced string, faults []spec.Notice) {
	var lists []string
	n := 0
	for line := range bytes.Lines(bytes.TrimPrefix(data, []byte("\ufeff"))) {
		n++
		line = bytes.TrimSpace(line)
		comment, isComment := bytes.CutPrefix(line, []byte("#"))
		switch {
		case string(line) == ignoreMark:
		case isComment:
			list, detail := directive(strings.TrimSpace(string(comment)))
			if list != "" {
				lists = append(lists, list)
			}
			if detail != "" {
				faults = append(faults, spec.SettingIgnored.Notice(spec.Origin{File: file, Line: n}, "", "", detail))
			}
		case len(line) > 0 && !bytes.HasPrefix(line, []byte("---")) && line[0] != '%':
			return strings.Join(lists, ","), faults
		}
	}
	return strings.Join(lists, ","), faults
}

var directiveForm = regexp.MustCompile(`^weir[:/][a-z]`)

// directive returns the notices that a comment silences, and what is wrong with it if it is meant for weir.
func directive(text string) (list, fault string) {
	if !directiveForm.MatchString(text) {
		return "", ""
	}
	rest, ok := strings.CutPrefix(text, silenceComment)
	switch {
	case ok && (rest == "" || strings.IndexByte(": \t", rest[0]) >= 0):
	case strings.HasPrefix("# "+text, ignoreMark):
		return "", "is no comment that leaves out the file: it must be " + ignoreMark + ", with nothing else on its line"
	default:
		return "", "is no comment that weir knows; did you mean # " + silenceComment + " or " + ignoreMark + "?"
	}
	list = strings.TrimSpace(strings.TrimPrefix(rest, ":"))
	if list == "" {
		return "", "silences nothing: it must list IDs of notices, as # " + silenceComment + " W001 does"
	}
	if err := spec.CheckNoticeIDs(list); err != nil {
		return list, "silences less than it says: " + err.Error()
	}
	return list, ""
}
