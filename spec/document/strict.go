package document

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode"

	kjson "sigs.k8s.io/json"
)

// maxProblems limits the memory that the problems of a hostile document can take.
const maxProblems = 100

// decodeStrict decodes JSON into out. It returns unknown, duplicate and wrongly typed fields as problems and leaves
// them out, so that the rest can be validated as well.
func decodeStrict(data []byte, out any) []Problem {
	strict, err := kjson.UnmarshalStrict(data, out)
	if err == nil && len(strict) == 0 {
		return nil
	}
	var tree any
	twice, err := kjson.UnmarshalStrict(data, &tree)
	if err != nil {
		return []Problem{{Detail: "not JSON: " + WithoutScalars(err.Error())}}
	}
	v := reflect.ValueOf(out).Elem()
	c := checker{root: v.Type()}
	for _, err := range twice {
		if fe, ok := err.(kjson.FieldError); ok {
			c.add(fe.FieldPath(), "is given twice")
		}
	}
	v.SetZero()
	if !c.check(tree, v.Type(), "") {
		return c.problems
	}
	pruned, err := json.Marshal(tree)
	if err == nil {
		err = kjson.UnmarshalCaseSensitivePreserveInts(pruned, out)
	}
	if err != nil {
		c.add("", err.Error())
	}
	return c.problems
}

// checker compares decoded JSON with a Go type. A decoder stops at the first value of a wrong type and does not name
// the list item; the checker finds all of them.
type checker struct {
	root     reflect.Type // of the document
	problems []Problem
}

func (c *checker) add(field, detail string) {
	if len(c.problems) < maxProblems {
		c.problems = append(c.problems, Problem{Field: field, Detail: detail})
	}
}

var unmarshaler = reflect.TypeFor[json.Unmarshaler]()

// check reports what does not fit t and removes it from the value. It returns false if the value itself does not fit.
func (c *checker) check(v any, t reflect.Type, path string) bool {
	pointer := t.Kind() == reflect.Pointer
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	own := reflect.PointerTo(t).Implements(unmarshaler)
	if v == nil && (pointer || !own) {
		return true
	}
	if own { // some take no null, such as a duration
		data, err := json.Marshal(v)
		if err == nil {
			err = json.Unmarshal(data, reflect.New(t).Interface())
		}
		return c.fits(err == nil, path, v, unmarshalerName(t))
	}
	switch t.Kind() {
	case reflect.Struct:
		object, ok := v.(map[string]any)
		if ok {
			c.checkStruct(object, t, path)
		}
		return c.fits(ok, path, v, "an object with fields")
	case reflect.Map:
		object, ok := v.(map[string]any)
		for _, key := range sortedKeys(object) {
			if !c.check(object[key], t.Elem(), path+"["+key+"]") {
				delete(object, key)
			}
		}
		return c.fits(ok, path, v, "an object with fields")
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return true
		}
		list, ok := v.([]any)
		for i, item := range list {
			if !c.check(item, t.Elem(), fmt.Sprintf("%s[%d]", path, i)) {
				list[i] = nil
			}
		}
		return c.fits(ok, path, v, "a list")
	case reflect.String:
		_, ok := v.(string)
		return c.fits(ok, path, v, "a string"+quotesHint(v))
	case reflect.Bool:
		_, ok := v.(bool)
		return c.fits(ok, path, v, "true or false")
	case reflect.Int32:
		n, ok := v.(int64)
		return c.fits(ok && n >= math.MinInt32 && n <= math.MaxInt32, path, v, "a whole number")
	case reflect.Int64, reflect.Int:
		_, ok := v.(int64)
		return c.fits(ok, path, v, "a whole number")
	case reflect.Uint32:
		n, ok := v.(int64)
		return c.fits(ok && n >= 0 && n <= math.MaxUint32, path, v, "a whole number of at least 0")
	case reflect.Float32, reflect.Float64:
		_, whole := v.(int64)
		_, ok := v.(float64)
		return c.fits(ok || whole, path, v, "a number")
	}
	return true
}

func (c *checker) fits(ok bool, path string, v any, want string) bool {
	if !ok {
		c.add(path, fmt.Sprintf("must be %s, not %s", want, describe(v)))
	}
	return ok
}

func (c *checker) checkStruct(object map[string]any, t reflect.Type, path string) {
	fields := map[string]reflect.Type{}
	jsonFields(t, fields)
	for _, key := range sortedKeys(object) {
		child := key
		if path != "" {
			child = path + "." + key
		}
		ft, ok := fields[key]
		if !ok && len(c.problems) >= maxProblems {
			delete(object, key)
		} else if !ok {
			c.add(child, "unknown field"+c.suggestion(key, path, fields))
			delete(object, key)
		} else if !c.check(object[key], ft, child) {
			delete(object, key)
		}
	}
}

// jsonFields collects the fields of a struct by their names in JSON.
func jsonFields(t reflect.Type, out map[string]reflect.Type) {
	own := map[string]reflect.Type{}
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && (name == "" || strings.Contains(options, "inline")):
			jsonFields(f.Type, out)
		case name != "" && name != "-":
			own[name] = f.Type
		}
	}
	maps.Copy(out, own) // a struct's own field wins over an embedded one
}

func sortedKeys(m map[string]any) []string {
	return slices.Sorted(maps.Keys(m))
}

func unmarshalerName(t reflect.Type) string {
	switch t.Name() {
	case "IntOrString":
		return "a port number or the name of a port"
	case "Time", "MicroTime":
		return `a time such as "2006-01-02T15:04:05Z"`
	case "Duration", "TimeOrMetaDuration":
		return `a duration such as "30s"`
	case "Path":
		return `an absolute path such as "/etc/weir/file"`
	case "Quantity", "QuantityValue":
		return `a quantity such as "500m"`
	}
	return "a valid " + t.Name()
}

func quotesHint(v any) string {
	switch v.(type) {
	case bool, int64, float64:
		return " (put it in quotes)"
	}
	return ""
}

func describe(v any) string {
	switch v := v.(type) {
	case nil:
		return "nothing"
	case map[string]any:
		return "an object"
	case []any:
		return "a list"
	case string:
		return Quote(v)
	}
	return fmt.Sprint(v)
}

// Quote quotes and shortens text from the input, so that it cannot disguise a message.
func Quote(s string) string {
	const most = 120
	if len(s) > most {
		return strconv.Quote(strings.ToValidUTF8(s[:most], "")) + "..."
	}
	return strconv.Quote(s)
}

// Printable returns s if it is safe to print, and quoted otherwise.
func Printable(s string) string {
	if len(s) > 250 || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) {
		return Quote(s)
	}
	return s
}

// suggestion returns a hint at the field of an object at path that was probably meant: a misspelt one, or one that belongs to
// another object.
func (c *checker) suggestion(key, path string, fields map[string]reflect.Type) string {
	if key == "true" || key == "false" { // a key such as on, which YAML takes for a boolean
		return ""
	}
	if near := Nearest(key, slices.Sorted(maps.Keys(fields))); near != "" {
		return fmt.Sprintf("; did you mean %s?", near)
	}
	const most = 3 // of a name that is used everywhere, such a hint is no help
	switch objects := elsewhere(key, path, c.root); {
	case len(objects) == 0 || len(objects) > most:
		return ""
	case objects[0] == "":
		return "; it belongs at the top level"
	default:
		return "; it belongs in " + strings.Join(objects, ", or ")
	}
}

// elsewhere returns the objects that have a field of that name and are nearest to the root, as spec.ports[], or "" for the root
// itself: of those around the object at path, and of those inside of it. That is where wrong indentation takes a field from.
func elsewhere(key, path string, root reflect.Type) (objects []string) {
	path = itemNumbers.ReplaceAllString(path, "[]")
	least := 0
	for _, p := range placesOf(root)[key] {
		if !within(p.object, path) && !within(path, p.object) {
			continue
		}
		if len(objects) > 0 && p.depth > least {
			break
		}
		least = p.depth
		objects = append(objects, p.object)
	}
	return objects
}

// fieldPlace is an object that has a field.
type fieldPlace struct {
	object string // "" is the document
	depth  int
}

// places holds the result of placesOf for each type, since a hostile input may have an unknown field in each of its documents.
var places sync.Map

// placesOf returns the objects that have a field, by its name, the nearest to the root first.
func placesOf(root reflect.Type) map[string][]fieldPlace {
	if known, ok := places.Load(root); ok {
		return known.(map[string][]fieldPlace)
	}
	type object struct {
		path string
		t    reflect.Type
	}
	found := map[string][]fieldPlace{}
	level := []object{{"", root}}
	const most = 4 // types refer to themselves
	for depth := range most {
		var next []object
		for _, o := range level {
			for o.t.Kind() == reflect.Pointer || o.t.Kind() == reflect.Slice {
				if o.t.Kind() == reflect.Slice {
					o.path += "[]"
				}
				o.t = o.t.Elem()
			}
			if o.t.Kind() != reflect.Struct || reflect.PointerTo(o.t).Implements(unmarshaler) {
				continue
			}
			fields := map[string]reflect.Type{}
			jsonFields(o.t, fields)
			for _, name := range slices.Sorted(maps.Keys(fields)) {
				found[name] = append(found[name], fieldPlace{o.path, depth})
				next = append(next, object{strings.TrimPrefix(o.path+"."+name, "."), fields[name]})
			}
		}
		level = next
	}
	places.Store(root, found)
	return found
}

var itemNumbers = regexp.MustCompile(`\[\d+\]`)

// within reports whether one path leads to the object at another, or into it.
func within(path, object string) bool {
	rest, ok := strings.CutPrefix(path, object)
	return ok && (object == "" || rest == "" || rest[0] == '.' || rest[0] == '[')
}

// Nearest returns the name that a misspelt one probably means, which differs in at most two letters, or one if it is short, or has
// two of them in another order. It returns "" if there is none.
func Nearest(misspelt string, names []string) string {
	best, least := "", 3
	word := strings.ToLower(misspelt)
	for _, name := range names {
		lower := strings.ToLower(name)
		d := Distance(word, lower, least)
		if d == 2 && len(word) < 4 && sortedLetters(word) != sortedLetters(lower) {
			continue // hardly anything is left of qps in ipvs, as it is of dsn in dns
		}
		if d < least {
			best, least = name, d
		}
	}
	if least >= len(best) {
		return ""
	}
	return best
}

func sortedLetters(word string) string {
	letters := []byte(word)
	slices.Sort(letters)
	return string(letters)
}

// Distance returns the number of letters to insert, delete or replace to turn a into b. It returns limit if that is not
// less.
func Distance(a, b string, limit int) int {
	if len(a) > len(b)+limit || len(b) > len(a)+limit {
		return limit
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return min(row[len(b)], limit)
}
