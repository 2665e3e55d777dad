package spec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Clean makes text of the input, such as a file name, harmless: it cannot control a terminal or end a line.
func Clean(s string) string {
	if !strings.ContainsFunc(s, unsafeRune) && utf8.ValidString(s) {
		return s
	}
	return strings.Map(func(r rune) rune {
		if unsafeRune(r) {
			return '\uFFFD'
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
}

func unsafeRune(r rune) bool { return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) }

// WriteJSON writes a document with indentation. Characters that could control a terminal are escaped, so that the names in
// it stay as they are.
func WriteJSON(w io.Writer, doc any, escapeHTML bool) error {
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(escapeHTML)
	if err := enc.Encode(doc); err != nil {
		return err
	}
	raw := func(r rune) bool { return r != '\n' && unsafeRune(r) }
	if !bytes.ContainsFunc(text.Bytes(), raw) {
		_, err := w.Write(text.Bytes())
		return err
	}
	var escaped bytes.Buffer
	for _, r := range text.String() { // such a character is always in a string
		if !raw(r) {
			escaped.WriteRune(r)
			continue
		}
		for _, unit := range utf16.Encode([]rune{r}) {
			fmt.Fprintf(&escaped, `\u%04x`, unit)
		}
	}
	_, err := w.Write(escaped.Bytes())
	return err
}
