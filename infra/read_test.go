package infra_test

import (
	"fmt"
	"os"
	"slices"
	"sort"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// A template is CloudFormation as plain values: maps, lists, strings, numbers
// and booleans, aliases resolved, short tags such as !Ref in their long form.
type template map[string]any

func readTemplate(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func parse(text string) (template, error) {
	var document yaml.Node
	if err := yaml.Unmarshal([]byte(text), &document); err != nil {
		return nil, err
	}
	if len(document.Content) != 1 {
		return nil, fmt.Errorf("the template holds %d documents, not one", len(document.Content))
	}
	root, ok := plain(document.Content[0]).(map[string]any)
	if !ok {
		return nil, fmt.Errorf("the template is not a map")
	}
	return root, nil
}

func plain(node *yaml.Node) any {
	if node.Kind == yaml.AliasNode {
		return plain(node.Alias)
	}
	short, tagged := strings.CutPrefix(node.Tag, "!")
	if !tagged || strings.HasPrefix(short, "!") {
		return untagged(node)
	}
	value := untagged(node)
	switch short {
	case "Ref", "Condition":
		return map[string]any{short: value}
	case "GetAtt":
		if text, ok := value.(string); ok {
			resource, attribute, _ := strings.Cut(text, ".")
			value = []any{resource, attribute}
		}
	}
	return map[string]any{"Fn::" + short: value}
}

func untagged(node *yaml.Node) any {
	switch node.Kind {
	case yaml.MappingNode:
		out := map[string]any{}
		for i := 0; i < len(node.Content); i += 2 {
			out[node.Content[i].Value] = plain(node.Content[i+1])
		}
		return out
	case yaml.SequenceNode:
		out := []any{}
		for _, item := range node.Content {
			out = append(out, plain(item))
		}
		return out
	}
	if strings.HasPrefix(node.Tag, "!") && !strings.HasPrefix(node.Tag, "!!") {
		return node.Value
	}
	var scalar any
	if err := node.Decode(&scalar); err != nil {
		return node.Value
	}
	return scalar
}

// at follows keys and list indices; nil where nothing is.
func at(value any, path ...any) any {
	for _, step := range path {
		switch step := step.(type) {
		case string:
			m, _ := value.(map[string]any)
			value = m[step]
		case int:
			l, _ := value.([]any)
			if step >= len(l) {
				return nil
			}
			value = l[step]
		}
	}
	return value
}

func (t template) resources() map[string]any {
	m, _ := t["Resources"].(map[string]any)
	return m
}

// ofType are the names of the resources of a type, sorted.
func (t template) ofType(kind string) []string {
	var names []string
	for name, resource := range t.resources() {
		if at(resource, "Type") == kind {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	return names
}

func (t template) property(resource string, path ...any) any {
	return at(t.resources()[resource], append([]any{"Properties"}, path...)...)
}

// list makes one of what may be one or several.
func list(value any) []any {
	switch value := value.(type) {
	case nil:
		return nil
	case []any:
		return value
	}
	return []any{value}
}

// words renders a value on one line as a reviewer would say it: `Table.Arn`
// for a GetAtt, `Bucket` for a Ref, the text with its ${…} for a Sub.
func words(value any) string {
	switch value := value.(type) {
	case []any:
		var parts []string
		for _, v := range value {
			parts = append(parts, words(v))
		}
		return strings.Join(parts, " ")
	case map[string]any:
		return wordsOfMap(value)
	}
	return fmt.Sprint(value)
}

func wordsOfMap(value map[string]any) string {
	if ref, ok := value["Ref"]; ok {
		return words(ref)
	}
	if sub, ok := value["Fn::Sub"]; ok {
		return words(sub)
	}
	if path, ok := value["Fn::GetAtt"].([]any); ok {
		return strings.ReplaceAll(words(path), " ", ".")
	}
	var parts []string
	for _, key := range keys(value) {
		parts = append(parts, key+" "+words(value[key]))
	}
	return strings.Join(parts, " ")
}

func keys(value any) []string {
	m, _ := value.(map[string]any)
	var out []string
	for key := range m {
		out = append(out, key)
	}
	slices.Sort(out)
	return out
}

// every calls do with each map inside value, value itself included.
func every(value any, do func(map[string]any)) {
	switch value := value.(type) {
	case map[string]any:
		do(value)
		for _, key := range keys(value) {
			every(value[key], do)
		}
	case []any:
		for _, v := range value {
			every(v, do)
		}
	}
}

// statements are those of every policy inside value, the branches of an Fn::If
// each on its own.
func statements(value any) []map[string]any {
	var out []map[string]any
	every(value, func(m map[string]any) {
		for _, s := range list(m["Statement"]) {
			out = append(out, branches(s)...)
		}
	})
	return out
}

func branches(statement any) []map[string]any {
	m, _ := statement.(map[string]any)
	choice, ok := m["Fn::If"].([]any)
	if !ok {
		return []map[string]any{m}
	}
	var out []map[string]any
	for _, branch := range choice[1:] {
		out = append(out, branches(branch)...)
	}
	return out
}
