// Package choice decides which files of a tree are read. Patterns are lines in the syntax of .gitignore, which a
// .weirignore, --include and --exclude have. The package reads no files; filesource and gitsource import it.
//
// A pattern becomes a regular expression, whose time does not explode with its wildcards. Of the libraries for .gitignore,
// go-git is the one that is kept well, and brings a whole Git with it; doublestar has other character classes than Git.
// The test compares with git check-ignore.
package choice

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"regexp"
	"strings"
	"unicode/utf8"
)

// IgnoreFile is the name of a file whose Patterns name what is not read in its directory and below.
const IgnoreFile = ".weirignore"

// Patterns are lines of a .gitignore, in order: the last one that fits a path decides.
type Patterns []pattern

type pattern struct {
	paths   *regexp.Regexp
	negated bool // "!": what fits is not meant
	dirs    bool // "/" at the end: only directories fit
}

// Parse returns the patterns of some lines. It leaves out comments, empty lines, and patterns that are no valid globs.
func Parse(lines []string) Patterns {
	var all Patterns
	for _, line := range lines {
		if p, ok := parse(line); ok {
			all = append(all, p)
		}
	}
	return all
}

// ErrEncoding means that a file of patterns is no UTF-8 text, so that none of its lines would fit anything.
var ErrEncoding = errors.New("is encoded as UTF-16; save it as UTF-8")

// CheckFile returns ErrEncoding if a file is none of patterns.
func CheckFile(data []byte) error {
	if bytes.HasPrefix(data, []byte("\xff\xfe")) || bytes.HasPrefix(data, []byte("\xfe\xff")) {
		return ErrEncoding
	}
	return nil
}

// ParseFile returns the patterns of a file.
func ParseFile(data []byte) Patterns {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	lines := strings.Split(string(data), "\n")
	for i := range lines {
		lines[i] = strings.TrimSuffix(lines[i], "\r")
	}
	return Parse(lines)
}

// Check returns what is wrong with a pattern that a user gives on its own.
func Check(line string) error {
	if _, ok := parse(line); !ok {
		return fmt.Errorf("%q is not a pattern as in .gitignore, such as legacy/ or *.tmpl.yaml", line)
	}
	return nil
}

// parse returns the pattern of a line, or false for a comment, an empty line, and a glob that fits nothing.
func parse(line string) (p pattern, ok bool) {
	if strings.HasPrefix(line, "#") {
		return p, false
	}
	line = trimSpaces(line)
	line, p.negated = strings.CutPrefix(line, "!")
	line, p.dirs = strings.CutSuffix(line, "/")
	if line == "" {
		return p, false
	}
	anchored := strings.Contains(line, "/")
	expr, ok := expression(strings.TrimPrefix(line, "/"))
	if !ok {
		return p, false
	}
	if !anchored {
		expr = "(?:.*/)?" + expr
	}
	p.paths, ok = compile(expr)
	return p, ok
}

func compile(expr string) (*regexp.Regexp, bool) {
	re, err := regexp.Compile("(?s)^" + expr + "$")
	return re, err == nil
}

// trimSpaces cuts spaces at the end of a line, but for one after a backslash.
func trimSpaces(line string) string {
	end := 0
	for i := 0; i < len(line); i++ {
		switch {
		case line[i] == '\\' && i+1 < len(line):
			i++
			end = i + 1
		case line[i] != ' ':
			end = i + 1
		}
	}
	return line[:end]
}

// expression returns the regular expression of a glob, or false if the glob fits nothing.
func expression(glob string) (expr string, ok bool) {
	var b strings.Builder
	for i := 0; i < len(glob); {
		c, size := utf8.DecodeRuneInString(glob[i:])
		switch c {
		case '*':
			stars := len(glob[i:]) - len(strings.TrimLeft(glob[i:], "*"))
			rest := glob[i+stars:]
			whole := stars > 1 && (i == 0 || glob[i-1] == '/')
			switch size = stars; {
			case whole && strings.HasPrefix(rest, "/"):
				b.WriteString("(?:.*/)?") // no directory, or any number of them
				size++
			case whole && rest == "":
				b.WriteString(".+")
			default:
				b.WriteString("[^/]*")
			}
		case '?':
			b.WriteString("[^/]")
		case '[':
			class, n, ok := class(glob[i:])
			if !ok {
				return "", false
			}
			b.WriteString(class)
			size = n
		case '\\':
			if i+1 == len(glob) {
				return "", false
			}
			c, n := utf8.DecodeRuneInString(glob[i+1:])
			b.WriteString(regexp.QuoteMeta(string(c)))
			size = 1 + n
		default:
			b.WriteString(regexp.QuoteMeta(glob[i : i+size]))
		}
		i += size
	}
	return b.String(), true
}

// class returns the regular expression of a class such as [a-z], [!a] or [[:alpha:]] at the beginning of a glob, and the
// length of the class. A class never fits a slash.
func class(glob string) (expr string, size int, ok bool) {
	i := 1
	negated := i < len(glob) && (glob[i] == '!' || glob[i] == '^')
	if negated {
		i++
	}
	set := ""
	for first := i; i == first || !strings.HasPrefix(glob[i:], "]"); {
		if name, _, found := strings.Cut(glob[i:], ":]"); found && strings.HasPrefix(name, "[:") {
			set += name + ":]"
			i += len(name) + 2
			continue
		}
		low, n := classRune(glob[i:])
		i += n
		high := low
		if rest := glob[i:]; len(rest) > 1 && rest[0] == '-' && rest[1] != ']' {
			high, n = classRune(rest[1:])
			i += 1 + n
		}
		if low == utf8.RuneError || high == utf8.RuneError {
			return "", 0, false // the glob ends before the class does
		}
		set += runes(low, min(high, '/'-1)) + runes(max(low, '/'+1), high)
	}
	switch {
	case negated:
		expr = "[^/" + set + "]"
	case set == "":
		return "", 0, false
	default:
		expr = "[" + set + "]"
	}
	return expr, i + 1, true
}

// classRune returns the first character of a class, which may follow a backslash.
func classRune(class string) (c rune, size int) {
	escape := 0
	if strings.HasPrefix(class, `\`) {
		escape = 1
	}
	c, size = utf8.DecodeRuneInString(class[escape:])
	return c, escape + size
}

// runes returns a range of characters for a regular expression, or "" for none.
func runes(low, high rune) string {
	if low > high {
		return ""
	}
	return fmt.Sprintf(`\x{%x}-\x{%x}`, low, high)
}

// Match returns whether the last pattern that fits a path is one without "!", and whether any fits. The path is relative
// to the directory of the patterns.
func (p Patterns) Match(name string, isDir bool) (matches, decided bool) {
	for i := len(p) - 1; i >= 0; i-- {
		if p[i].dirs && !isDir {
			continue
		}
		if p[i].paths.MatchString(name) {
			return !p[i].negated, true
		}
	}
	return false, false
}

// Covers reports whether the patterns match a file or a directory above it.
func (p Patterns) Covers(file string) bool {
	if matches, decided := p.Match(file, false); decided {
		return matches
	}
	for dir := path.Dir(file); dir != "."; dir = path.Dir(dir) {
		if matches, decided := p.Match(dir, true); decided {
			return matches
		}
	}
	return false
}

// Rules decide which files of one tree are read.
type Rules struct {
	// Include, if not empty, must cover a file. Exclude must not match it, or a directory above it.
	Include, Exclude Patterns
	// Ignores are the patterns of the ignore files, by the directory of each; "." is the top.
	Ignores map[string]Patterns
}

// Excludes reports whether a file or directory is left out. Its path is relative to the top of the tree. The directories
// above it are not looked at, because a source does not enter a directory that is left out.
func (r *Rules) Excludes(name string, isDir bool) bool {
	if !isDir && len(r.Include) > 0 && !r.Include.Covers(name) {
		return true
	}
	if matches, _ := r.Exclude.Match(name, isDir); matches {
		return true
	}
	if len(r.Ignores) == 0 {
		return false
	}
	for dir := path.Dir(name); ; dir = path.Dir(dir) {
		below := name
		if dir != "." {
			below = name[len(dir)+1:]
		}
		if matches, decided := r.Ignores[dir].Match(below, isDir); decided {
			return matches
		}
		if dir == "." {
			return false
		}
	}
}

// Glob is a path with wildcards, such as services/*.yaml.
type Glob struct {
	// Dir is the directory before the first wildcard, and Rest the path below it.
	Dir, Rest string
	// Files fit the files that are meant, by their paths below Dir.
	Files Patterns
}

// ErrGlob means that a path has wildcards in a form that fits nothing. Its directory must not be read without them.
var ErrGlob = errors.New(`is not a pattern as in .gitignore, such as *.yaml or [ab].yaml`)

// ParseGlob returns the Glob that a path is, nil for a path without wildcards, or ErrGlob.
func ParseGlob(name string) (*Glob, error) {
	wildcard := strings.IndexAny(name, "*?[")
	if wildcard < 0 {
		return nil, nil
	}
	g := &Glob{Dir: ".", Rest: name}
	switch end := strings.LastIndex(name[:wildcard], "/"); {
	case end == 0:
		g.Dir, g.Rest = "/", name[1:]
	case end > 0:
		g.Dir, g.Rest = name[:end], name[end+1:]
	}
	p, ok := parse("/" + g.Rest)
	if !ok {
		return nil, ErrGlob
	}
	g.Files = Patterns{p}
	return g, nil
}
