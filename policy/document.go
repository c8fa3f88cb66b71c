package policy

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Error is one fault of a policy file.
type Error struct {
	File         string
	Line, Column int    // from 1; 0 when the fault has no place in a file
	Key          string // path of the key, as in rules[0].commands.deny[2]; may be empty
	Problem      string // what is wrong and what to do
}

// Error gives file:line:column: key: problem.
func (e *Error) Error() string {
	key := e.Key
	if key != "" {
		key += ": "
	}
	return fmt.Sprintf("%s:%d:%d: %s%s", e.File, e.Line, e.Column, key, e.Problem)
}

// Bounds of a document's shape. The parser behind recurses, and a Go stack that overflows cannot be recovered from;
// the deepest policy has a nesting of five. It also takes quadratic time over the keys of one mapping: minutes for
// what fits in MaxSize, a fraction of a second for what fits in maxTokens.
const (
	maxTokens = 40_000 // words and signs; 15,000 addresses still fit
	maxFlow   = 16     // nested [ and {
	maxColumn = 400    // of an indicator outside them: block nesting costs a column a level
	maxFaults = 50     // reported in one go
)

type place struct{ line, column int }

// document turns YAML into the raw structs and remembers where each key's value stood, by path, so that the checks
// that follow can point at it.
type document struct {
	file   string
	places map[string]place
	texts  map[string]place // of block scalars: where their first line of content stands
	faults []*Error
}

func newDocument(file string) *document {
	return &document{file: file, places: map[string]place{}, texts: map[string]place{}}
}

// fault records a fault of the value at a path.
func (d *document) fault(key, format string, args ...any) {
	d.faultAt(d.places[key], key, format, args...)
}

func (d *document) faultAt(at place, key, format string, args ...any) {
	d.faults = append(d.faults, &Error{d.file, at.line, at.column, key, fmt.Sprintf(format, args...)})
}

// err joins the faults in the order of the file.
func (d *document) err() error {
	slices.SortStableFunc(d.faults, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	var errs []error
	for i, f := range d.faults {
		if i == maxFaults {
			errs = append(errs, fmt.Errorf("%s: and %d more", d.file, len(d.faults)-i))
			break
		}
		errs = append(errs, f)
	}
	return errors.Join(errs...)
}

// decode fills raw from src. It is stricter than the YAML library's own strict mode, which turns numbers into text,
// text into numbers and 021 into 17, and stops at the first fault.
func (d *document) decode(src []byte, raw *rawPolicy) {
	if len(src) > MaxSize {
		d.faultAt(place{1, 1}, "", "larger than %d bytes, the most that a policy may have; write prefixes for addresses", MaxSize)
		return
	}
	src = bytes.TrimPrefix(src, []byte("\xef\xbb\xbf")) // a byte order mark (YAML 1.2 section 5.2), as editors on Windows leave it
	if at, ok := firstBadByte(src); !ok {
		d.faultAt(at, "", "a byte that is not UTF-8 text, or a control character; save the file as UTF-8")
		return
	}
	if body := d.parse(string(src)); body != nil {
		d.value(body, "", reflect.ValueOf(raw).Elem())
	}
}

func firstBadByte(src []byte) (place, bool) {
	line := 1
	for text := range bytes.Lines(src) {
		for i := 0; i < len(text); {
			r, n := utf8.DecodeRune(text[i:])
			if r == utf8.RuneError && n == 1 || unicode.IsControl(r) && !strings.ContainsRune("\t\r\n", r) {
				return place{line, 1 + utf8.RuneCount(text[:i])}, false
			}
			i += n
		}
		line++
	}
	return place{}, true
}

// parse gives the top mapping of a file with a single document, or nil after recording why not.
func (d *document) parse(src string) (body ast.Node) {
	// A reload must survive any file, and the library is known to panic on some malformed ones.
	defer func() {
		if p := recover(); p != nil {
			d.faultAt(place{1, 1}, "", "not YAML that can be parsed (%v); bring it nearer to the reference policy", p)
			body = nil
		}
	}()
	tokens := lexer.Tokenize(src)
	if !d.plain(tokens) {
		return nil
	}
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey()) // duplicates are refused below, all at once
	if err != nil {
		d.syntax(err)
		return nil
	}
	if len(file.Docs) != 1 {
		d.faultAt(place{1, 1}, "", "%d YAML documents; a policy is one, remove the --- between them", len(file.Docs))
		return nil
	}
	if file.Docs[0].Body == nil {
		d.faultAt(place{1, 1}, "", "empty; a policy begins with version: 1")
		return nil
	}
	return file.Docs[0].Body
}

// plain refuses what a policy has no use for before anything recurses over it or expands it: aliases, which can make
// a small file enormous, tags, directives, merge keys and deep nesting.
func (d *document) plain(tokens token.Tokens) bool {
	if len(tokens) > maxTokens {
		d.faultAt(place{1, 1}, "", "more than %d words and signs; write prefixes for addresses", maxTokens)
		return false
	}
	flow := 0
	for _, t := range tokens {
		at := place{t.Position.Line, t.Position.Column}
		switch t.Type {
		case token.AnchorType, token.AliasType:
			d.faultAt(at, "", "anchors and aliases are not supported; write the value out, or put quotes around it")
			return false
		case token.TagType, token.DirectiveType, token.MergeKeyType, token.MappingKeyType:
			d.faultAt(at, "", "%q: tags, directives, merge keys and ? keys are not supported; write plain keys and values", t.Value)
			return false
		case token.SequenceStartType, token.MappingStartType:
			flow++
		case token.SequenceEndType, token.MappingEndType:
			flow--
		case token.SequenceEntryType, token.MappingValueType:
			if flow <= 0 && t.Position.Column > maxColumn {
				d.faultAt(at, "", "%q beyond column %d; nest less", t.Value, maxColumn)
				return false
			}
		}
		if flow > maxFlow {
			d.faultAt(at, "", "more than %d brackets deep; nest less", maxFlow)
			return false
		}
	}
	return true
}

func (d *document) syntax(err error) {
	at, problem := place{1, 1}, ""
	var located yaml.Error
	if !errors.As(err, &located) {
		problem = err.Error()
	} else {
		problem = located.GetMessage() // Error() would draw the source around it
		if t := located.GetToken(); t != nil && t.Position != nil {
			at = place{t.Position.Line, t.Position.Column}
		}
	}
	d.faultAt(at, "", "not YAML: %s; check indentation, colons and quotes here", problem)
}

func (d *document) value(n ast.Node, key string, v reflect.Value) {
	d.places[key] = nodePlace(n)
	switch {
	case v.Kind() == reflect.Struct:
		d.mapping(n, key, v)
	case v.Kind() == reflect.Slice:
		d.sequence(n, key, v)
	default:
		d.scalar(n, key, v)
	}
}

// mapping fills a struct from a mapping, field by key.
func (d *document) mapping(n ast.Node, key string, v reflect.Value) {
	m, ok := n.(*ast.MappingNode)
	if !ok {
		d.fault(key, "%s where keys and values are wanted; write one of: %s", kindOf(n), strings.Join(keys(v.Type()), ", "))
		return
	}
	seen := map[string]bool{}
	for _, entry := range m.Values {
		name, at := entry.Key.GetToken().Value, nodePlace(entry.Key)
		field, known := fieldOf(v, name)
		switch {
		case !known:
			d.faultAt(at, join(key, name), "unknown key; %s", instead(name, keys(v.Type())))
		case seen[name]:
			d.faultAt(at, join(key, name), "given twice; remove one")
		default:
			d.value(entry.Value, join(key, name), field)
		}
		seen[name] = true
	}
	for _, name := range required(v.Type()) {
		if !seen[name] {
			d.faultAt(d.places[key], join(key, name), "missing; add it")
		}
	}
}

// sequence fills a slice. A list of words or numbers with one item may be written as that item.
func (d *document) sequence(n ast.Node, key string, v reflect.Value) {
	items := []ast.Node{n}
	s, isSequence := n.(*ast.SequenceNode)
	if isSequence {
		items = s.Values
	} else if v.Type().Elem().Kind() == reflect.Struct || n.Type() == ast.NullType {
		d.fault(key, "%s where a list is wanted; begin each item with a dash", kindOf(n))
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(items), len(items)))
	for i, item := range items {
		preset(v.Index(i))
		d.value(item, index(key, i), v.Index(i))
	}
}

// preset gives an item of a list its defaults.
func preset(v reflect.Value) {
	switch item := v.Addr().Interface().(type) {
	case *rawServer:
		*item = defaultServer()
	case *rawRule:
		*item = defaultRule()
	case *rawTest:
		*item = defaultTest()
	}
}

func (d *document) scalar(n ast.Node, key string, v reflect.Value) {
	switch v.Interface().(type) {
	case time.Duration:
		if s, ok := n.(*ast.StringNode); ok {
			if t, err := time.ParseDuration(s.Value); err == nil {
				v.SetInt(int64(t))
				return
			}
		}
		d.fault(key, "%s where a duration is wanted; write it with its unit, such as 30s or 2m", kindOf(n))
	case int, int64:
		// Only plain decimal: what 021, 0x15 or 1_000 mean differs between readers of YAML.
		i, err := strconv.ParseInt(n.GetToken().Value, 10, v.Type().Bits())
		if n.Type() != ast.IntegerType || err != nil || strconv.FormatInt(i, 10) != n.GetToken().Value {
			d.fault(key, "%s where a whole decimal number is wanted; write digits without quotes", kindOf(n))
			return
		}
		v.SetInt(i)
	case string:
		d.text(n, key, v)
	}
}

func (d *document) text(n ast.Node, key string, v reflect.Value) {
	switch s := n.(type) {
	case *ast.StringNode:
		v.SetString(s.Value)
	case *ast.LiteralNode:
		v.SetString(s.Value.Value)
		d.texts[key] = place{s.Start.Position.Line + 1, 1}
	default:
		d.fault(key, "%s where text is wanted; put quotes around it", kindOf(n))
	}
}

// kindOf says what a node is, in the words of someone who wrote it.
func kindOf(n ast.Node) string {
	switch n.Type() {
	case ast.MappingType, ast.MappingValueType:
		return "keys and values"
	case ast.SequenceType:
		return "a list"
	case ast.NullType:
		return "nothing"
	case ast.IntegerType, ast.FloatType, ast.InfinityType, ast.NanType:
		return "the number " + n.GetToken().Value
	case ast.BoolType:
		return "the truth value " + n.GetToken().Value
	case ast.StringType:
		return "the text " + strconv.Quote(n.GetToken().Value)
	}
	return "a block of text"
}

func nodePlace(n ast.Node) place {
	t := n.GetToken()
	if n.Type() == ast.NullType && t.Prev != nil {
		t = t.Prev // what is not there has no place of its own: the sign before it
	}
	if m, ok := n.(*ast.MappingNode); ok && !m.IsFlowStyle && len(m.Values) > 0 {
		t = m.Values[0].Key.GetToken() // a block mapping's own token is its first colon
	}
	return place{t.Position.Line, t.Position.Column}
}

func join(key, name string) string {
	if key == "" {
		return name
	}
	return key + "." + name
}

func index(key string, i int) string { return key + "[" + strconv.Itoa(i) + "]" }

// fieldOf gives the field of a raw struct that a key stands for.
func fieldOf(v reflect.Value, key string) (reflect.Value, bool) {
	i := slices.Index(keys(v.Type()), key)
	if i < 0 {
		return reflect.Value{}, false
	}
	return v.Field(i), true
}

// keys lists the keys of a raw struct, one a field.
// instead says what to write in place of a word that is none of some.
func instead(word string, of []string) string {
	near := slices.MinFunc(of, func(a, b string) int { return distance(word, a) - distance(word, b) })
	if distance(word, near) <= 1+len(near)/6 {
		return fmt.Sprintf("did you mean %s?", near)
	}
	return "the keys here are " + strings.Join(of, ", ")
}

// distance is how many letters have to be added, taken away or changed to make one word the other (Levenshtein's).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

func keys(t reflect.Type) []string {
	names := make([]string, t.NumField())
	for i := range names {
		names[i], _, _ = strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
	}
	return names
}

func required(t reflect.Type) []string {
	var names []string
	for i, name := range keys(t) {
		if strings.HasSuffix(t.Field(i).Tag.Get("yaml"), ",required") {
			names = append(names, name)
		}
	}
	return names
}
