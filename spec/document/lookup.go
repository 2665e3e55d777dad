package document

import (
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// found is the part of a path that exists.
type found struct {
	line int        // of the last existing field on the path
	node *yaml.Node // at the end of the path, or nil
	path string     // with the keys as written
}

// find follows a path from a node, and aliases on the way.
func find(n *yaml.Node, path string) found {
	f := found{line: n.Line}
	for {
		n = target(n)
		dot := ""
		if rest, ok := strings.CutPrefix(path, "."); ok {
			dot, path = ".", rest
		}
		if path == "" {
			f.node = n
			return f
		}
		child, line, name, rest := descend(n, path, maxMerges)
		if child == nil {
			f.path += dot + path
			return f
		}
		f.line = line
		f.path += dot + name
		n, path = child, rest
	}
}

// maxMerges limits the depth of the search in merged mappings, because a mapping may merge itself.
const maxMerges = 10

// descend takes the longest key, or the index, at the beginning of a path. A mapping's own keys win over merged ones.
func descend(n *yaml.Node, path string, merges int) (child *yaml.Node, line int, name, rest string) {
	switch n.Kind {
	case yaml.MappingNode:
		longest := -1
		var merged *yaml.Node
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i], n.Content[i+1]
			if isMerge(key) {
				merged = value
			}
			if len(key.Value) < longest {
				continue
			}
			if as, after, ok := cutNode(path, key); ok {
				longest = len(key.Value)
				child, line, name, rest = value, key.Line, as, after
			}
		}
		if child == nil && merged != nil && merges > 0 {
			sources, _ := mergedMappings(merged)
			for _, source := range sources {
				if child, line, name, rest = descend(source, path, merges-1); child != nil {
					return child, line, name, rest
				}
			}
		}
	case yaml.SequenceNode:
		index, after, ok := cutIndex(path)
		if ok && index < len(n.Content) {
			child, line, name, rest = n.Content[index], n.Content[index].Line, path[:len(path)-len(after)], after
		}
	}
	return child, line, name, rest
}

// cutNode removes a key from the beginning of a path. The path may have the key's name in JSON or its written form.
// cutNode returns the written form.
func cutNode(path string, key *yaml.Node) (written, rest string, ok bool) {
	key = target(key)
	if rest, ok = cutKey(path, key.Value); ok {
		return path[:len(path)-len(rest)], rest, true
	}
	if key.Style&textStyles != 0 {
		return "", "", false
	}
	name, err := keyName(key)
	if err != nil || name == key.Value {
		return "", "", false
	}
	rest, ok = cutKey(path, name)
	return strings.Replace(path[:len(path)-len(rest)], name, key.Value, 1), rest, ok
}

// cutKey removes a key from the beginning of a path. The key can be plain, in brackets, or quoted in brackets.
func cutKey(path, key string) (rest string, ok bool) {
	for _, form := range []string{"[" + key + "]", `["` + key + `"]`} {
		if rest, ok = strings.CutPrefix(path, form); ok {
			return rest, true
		}
	}
	if key == "" {
		return "", false
	}
	rest, ok = strings.CutPrefix(path, key)
	return rest, ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
}

func cutIndex(path string) (index int, rest string, ok bool) {
	inner, ok := strings.CutPrefix(path, "[")
	if !ok {
		return 0, "", false
	}
	digits, rest, ok := strings.Cut(inner, "]")
	index, err := strconv.Atoi(digits)
	return index, rest, ok && err == nil && index >= 0
}
