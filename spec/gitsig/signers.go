package gitsig

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"weir/spec"
)

// namespace is that of signatures of commits and tags.
const namespace = "git"

// maxSigners limits the lines of a file.
const maxSigners = 10_000

// Signers are the keys of an allowed signers file. They are immutable.
type Signers struct {
	file    string
	signers []signer
}

// signer is one line.
type signer struct {
	line       int
	principals string // a list of patterns, as match takes it
	key        string // in wire format
	// namespaces is a list of patterns, if limited.
	namespaces string
	limited    bool
	// after and before are seconds since 1970, both inclusive; 0 means no limit.
	after, before int64
}

// Parse reads an allowed signers file, in the format of ssh-keygen(1). Lines with a certificate authority are left out,
// because Verify accepts no certificates.
func Parse(file string, data []byte) (*Signers, spec.Problems) {
	s := &Signers{file: file}
	var problems spec.Problems
	number := 0
	for line := range bytes.Lines(data) {
		number++
		text := strings.Trim(string(line), " \t\r\n")
		if text == "" || text[0] == '#' {
			continue
		}
		if len(s.signers) == maxSigners {
			return nil, spec.Problems{{Origin: spec.Origin{File: file, Line: number}, Detail: fmt.Sprintf("more than %d signers", maxSigners)}}
		}
		one, authority, err := parseLine(text)
		switch {
		case err != nil:
			problems = append(problems, spec.Problem{Origin: spec.Origin{File: file, Line: number}, Detail: err.Error() + "; a line is PRINCIPALS [OPTIONS] KEYTYPE KEY"})
		case !authority:
			one.line = number
			s.signers = append(s.signers, one)
		}
	}
	if len(problems) > 0 {
		return nil, problems
	}
	return s, nil
}

// parseLine reads one line, without the space around it. authority reports whether its key is that of a certificate authority.
// No error has text of the line, because the file may be another than was meant.
func parseLine(text string) (s signer, authority bool, err error) {
	s.principals, text, err = firstWord(text)
	if err != nil {
		return s, false, err
	}
	kind, rest := cutSpace(text)
	if !slices.Contains(keyTypes, kind) && !otherKey(kind) {
		var options string
		options, text = cutOptions(text)
		if authority, err = s.options(options); err != nil {
			return s, false, err
		}
		kind, rest = cutSpace(text)
	}
	if otherKey(kind) {
		return s, false, fmt.Errorf("keys of type %s are not supported; use one of %s", kind, strings.Join(keyTypes, ", "))
	}
	if !slices.Contains(keyTypes, kind) {
		return s, false, fmt.Errorf("has no key of a type that is known, which are %s", strings.Join(keyTypes, ", "))
	}
	encoded, _ := cutSpace(rest)
	wire, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return s, false, fmt.Errorf("the key is not base64")
	}
	key, err := ssh.ParsePublicKey(wire)
	if err != nil || key.Type() != kind || !bytes.Equal(key.Marshal(), wire) {
		return s, false, fmt.Errorf("the key is no key of type %s", kind)
	}
	s.key = string(wire)
	return s, authority, nil
}

// keyTypes are the types of keys whose signatures Verify accepts.
var keyTypes = []string{ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoRSA, ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256}

// otherKey reports whether a word is the type of a key that is not supported.
func otherKey(word string) bool {
	return word == "ssh-dss" || strings.HasSuffix(word, "-cert-v01@openssh.com")
}

// firstWord returns the first word, which may be quoted, and the rest.
func firstWord(text string) (word, rest string, err error) {
	quoted, isQuoted := strings.CutPrefix(text, `"`)
	if !isQuoted {
		word, rest = cutSpace(text)
		return word, rest, nil
	}
	word, rest, ok := strings.Cut(quoted, `"`)
	if !ok {
		return "", "", fmt.Errorf("a quote does not end")
	}
	return word, strings.TrimLeft(rest, " \t"), nil
}

// cutSpace cuts a text at its first space.
func cutSpace(text string) (word, rest string) {
	if i := strings.IndexAny(text, " \t"); i >= 0 {
		return text[:i], strings.TrimLeft(text[i:], " \t")
	}
	return text, ""
}

// cutOptions cuts a text at its first space that is not quoted.
func cutOptions(text string) (options, rest string) {
	quoted := false
	for i := 0; i < len(text); i++ {
		switch {
		case text[i] == '\\' && strings.HasPrefix(text[i+1:], `"`):
			i++
		case text[i] == '"':
			quoted = !quoted
		case !quoted && (text[i] == ' ' || text[i] == '\t'):
			return text[:i], strings.TrimLeft(text[i:], " \t")
		}
	}
	return text, ""
}

// options reads options that commas separate.
func (s *signer) options(text string) (authority bool, err error) {
	given := map[string]bool{}
	for text != "" {
		i := strings.IndexAny(text, "=,")
		name := strings.ToLower(text)
		if i >= 0 {
			name = name[:i]
		}
		if given[name] {
			return false, fmt.Errorf("an option is there twice")
		}
		given[name] = true
		if name == "cert-authority" && (i < 0 || text[i] == ',') {
			authority, text = true, strings.TrimPrefix(text[len(name):], ",")
			continue
		}
		if i < 0 || text[i] != '=' || !slices.Contains([]string{"namespaces", "valid-after", "valid-before"}, name) {
			return false, fmt.Errorf("has a word that is neither an option (cert-authority, namespaces=, valid-after=, valid-before=) nor the type of a key (%s)", strings.Join(keyTypes, ", "))
		}
		value, rest, err := dequote(text[i+1:])
		if err != nil {
			return false, fmt.Errorf("%s: %w", name, err)
		}
		if rest != "" && (rest[0] != ',' || rest == ",") {
			return false, fmt.Errorf("%s: a comma is to separate it from the next option", name)
		}
		text = strings.TrimPrefix(rest, ",")
		switch name {
		case "namespaces":
			s.namespaces, s.limited = value, true
		case "valid-after":
			s.after, err = parseTime(value)
		default:
			s.before, err = parseTime(value)
		}
		if err != nil {
			return false, fmt.Errorf("%s: %w", name, err)
		}
	}
	if s.after != 0 && s.before != 0 && s.before <= s.after {
		return false, fmt.Errorf("valid-before is not later than valid-after")
	}
	return authority, nil
}

// dequote reads a value in quotes.
func dequote(text string) (value, rest string, err error) {
	if !strings.HasPrefix(text, `"`) {
		return "", "", fmt.Errorf("the value must be in quotes")
	}
	var b strings.Builder
	for i := 1; i < len(text); i++ {
		switch {
		case text[i] == '"':
			return b.String(), text[i+1:], nil
		case text[i] == '\\' && strings.HasPrefix(text[i+1:], `"`):
			i++
		}
		b.WriteByte(text[i])
	}
	return "", "", fmt.Errorf("a quote does not end")
}

// parseTime reads a time in the time zone of this process, or with a Z in UTC.
func parseTime(text string) (int64, error) {
	digits, zone := text, time.Local
	for _, suffix := range []string{"Z", "z", "UTC", "utc"} {
		if cut, ok := strings.CutSuffix(text, suffix); ok {
			digits, zone = cut, time.UTC
			break
		}
	}
	for _, layout := range []string{"20060102", "200601021504", "20060102150405"} {
		if len(digits) != len(layout) {
			continue
		}
		if t, err := time.ParseInLocation(layout, digits, zone); err == nil && t.Unix() > 0 {
			return t.Unix(), nil
		}
	}
	return 0, fmt.Errorf("is not a time such as 20260131Z or 202601311200Z")
}

// match reports whether text matches a list of patterns with * and ?, one of which at least is positive and does, and none
// that begins with ! does.
func match(text, list string) bool {
	positive := false
	for pattern := range strings.SplitSeq(list, ",") {
		pattern, negated := strings.CutPrefix(pattern, "!")
		if len(pattern) > maxPattern {
			return false
		}
		if !matchOne(text, pattern) {
			continue
		}
		if negated {
			return false
		}
		positive = true
	}
	return positive
}

// maxPattern limits a pattern, as OpenSSH does.
const maxPattern = 1022

// matchOne reports whether text matches a pattern. It goes back to the last * only, so that it is quick with any pattern.
func matchOne(text, pattern string) bool {
	t, p, star, from := 0, 0, -1, 0
	for t < len(text) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, from = p, t
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == text[t]):
			p, t = p+1, t+1
		case star >= 0:
			from++
			p, t = star+1, from
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}
