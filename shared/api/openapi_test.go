package api

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"html"
	"html/template"
	"maps"
	"net/http"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/swaggest/jsonschema-go"

	"github.com/attended-sysupgrade/sysup/shared/build"
	"github.com/attended-sysupgrade/sysup/shared/catalog"
	"github.com/attended-sysupgrade/sysup/shared/client"
)

var update = flag.Bool("update", false, "write openapi.json and docs.html anew")

// TestOpenAPI makes the API's description from its routes and types and wants
// it to be what the server gives out. Every route has to be described, and
// nothing else.
func TestOpenAPI(t *testing.T) {
	doc := describe(t)
	text, err := json.MarshalIndent(doc, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	page := &bytes.Buffer{}
	if err := docsTemplate.Execute(page, doc); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]byte{"openapi.json": append(text, '\n'), "docs.html": page.Bytes()} {
		if *update {
			if err := os.WriteFile(name, want, 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if have, err := os.ReadFile(name); err != nil || !bytes.Equal(have, want) {
			t.Errorf("%s is not what the routes and types say (%v). Run: go generate ./shared/api", name, err)
		}
	}
}

// TestDocsForPeople: what is right in the source and strange on a page, stays
// in the source.
func TestDocsForPeople(t *testing.T) {
	page := html.UnescapeString(string(docsPage))
	for _, want := range []string{"<code><b>target</b></code>", `<td>"append" or "replace" or ""</td>`, "feed names to addresses"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %s", want)
		}
	}
	if found := regexp.MustCompile(`\bnil\b|\[".*"\]|<td>[A-Z]\w*[A-Z]\w* (is|are) .*`).FindString(page); found != "" {
		t.Errorf("the page has %s", found)
	}
}

// The document, as far as it is made here. Maps keep it in the order of their
// keys, whatever the order of the routes.
type openAPIDoc struct {
	OpenAPI string `json:"openapi"`
	Info    struct {
		Title       string `json:"title"`
		Version     string `json:"version"`
		Description string `json:"description"`
	} `json:"info"`
	Servers    []map[string]string             `json:"servers"`
	Tags       []tag                           `json:"tags"`
	Paths      map[string]map[string]operation `json:"paths"`
	Components struct {
		Schemas map[string]schema `json:"schemas"`
	} `json:"components"`
}

type tag struct {
	Name        string `json:"name"`
	Description string `json:"description"`
}

type schema = map[string]any

type operation struct {
	ID          string              `json:"operationId"`
	Tags        []string            `json:"tags"`
	Summary     string              `json:"summary"`
	Description string              `json:"description,omitempty"`
	Parameters  []parameter         `json:"parameters,omitempty"`
	RequestBody *content            `json:"requestBody,omitempty"`
	Responses   map[string]*content `json:"responses"`
}

type parameter struct {
	Name        string `json:"name"`
	In          string `json:"in"`
	Required    bool   `json:"required"`
	Description string `json:"description"`
	Schema      schema `json:"schema"`
}

// content is a body that is sent or answered.
type content struct {
	Description string            `json:"description"`
	Required    bool              `json:"required,omitempty"`
	Headers     map[string]any    `json:"headers,omitempty"`
	Content     map[string]schema `json:"content,omitempty"`
}

// described is what a person says about a route; the rest comes from types.
type described struct {
	tag, summary, text string
	body               any         // of a POST
	answers            map[int]any // by status: a value of the type, or a media type
}

const (
	tagBuild   = "Builds"
	tagOffer   = "What can be built"
	tagFiles   = "Files"
	tagService = "The service itself"
	tagOld     = "First API, 2017 to 2019"
)

var tags = []tag{
	{tagBuild, "Ask for an image and follow its build. A request is named by its hash: whoever sends the same one joins the same build."},
	{tagOffer, "Versions, targets, devices and packages."},
	{tagFiles, "Images, their signatures and the keys that these can be checked with."},
	{tagService, "For operators and for programs."},
	{tagOld, "As routers with LEDE 17.01 to OpenWrt 19.07 speak it."},
}

// about describes the routes, by method and path.
var about = map[string]described{
	"POST /api/v1/build": {tagBuild, "Ask for an image",
		"Answers at once. 202 is a build that is queued or under way, 200 one that was made before. Ask for its hash every few seconds until it is done.",
		client.Request{}, answers(client.Status{}, map[int]any{200: client.Result{}, 202: client.Status{}, 422: client.Status{}})},
	"GET /api/v1/build/{hash}": {tagBuild, "See how a build stands",
		"200 has the images, 202 is under way, 400, 422 and 500 say why there will be no image. HEAD answers the same headers.",
		nil, answers(client.Status{}, map[int]any{200: client.Result{}, 202: client.Status{}, 404: client.Status{}, 422: client.Status{}})},
	"GET /api/v1/revision/{version}/{target}/{subtarget}": {tagOffer, "The revision of a target", "Of a snapshot it moves; routers compare it with their own.",
		nil, answers(client.Status{}, map[int]any{200: map[string]string{}})},
	"GET /api/v1/overview": {tagOffer, "What this server offers", "", nil, offers(overview{})},
	"GET /api/v1/latest":   {tagOffer, "The newest version of each branch", "", nil, offers(map[string][]string{})},
	"GET /json/v1/branches.json": {tagOffer, "The branches of the overview as a list", "The \"path\" of a branch, with a version in place of {version}, is where its targets and packages are below /json/v1.",
		nil, offers([]branch{})},
	"GET /json/v1/releases/{version}/targets/{target}/{subtarget}/{file}": {tagOffer, "A device or the packages of a target",
		"A profile's name with .json, or index.json: the target's own packages with the modules of its kernel. Names are without ABI versions, versions are those that images get.",
		nil, listed(catalog.Profile{})},
	"GET /json/branches.json": {tagOffer, "The same for auc of 2021", "Below /json are the files of /json/v1 with what was demanded of them then.",
		nil, offers([]branch2021{})},
	"GET /json/releases/{version}/targets/{target}/{subtarget}/{file}": {tagOffer, "The same for auc of 2021", "With the date as text; index.json is that of /json/v1.",
		nil, listed(profile2021{})},
	"GET /json/v1/releases/{version}/packages/{file}": {tagOffer, "The packages of an architecture", "The architecture's name with -index.json: the newest version of each package in all feeds.",
		nil, listed(map[string]string{})},

	"GET /store/{path...}":      {tagFiles, "A file of a result", "The folder is the bin_dir of a finished build.", nil, file("application/octet-stream")},
	"GET /keys/{name}":          {tagFiles, "A public key or its signature", "server.pub signs the keys of workers; a worker's key signs sha256sums.", nil, file("text/plain; charset=utf-8")},
	"GET /healthz":              {tagService, "Whether the server is alive", "", nil, map[int]any{200: health{}}},
	"GET /readyz":               {tagService, "Whether it can answer requests now", "", nil, map[int]any{200: health{}, 503: client.Status{}}},
	"GET /api/openapi.json":     {tagService, "This description", "", nil, map[int]any{200: "application/json", 304: nil}},
	"GET /docs":                 {tagService, "This description for people", "", nil, map[int]any{200: "text/html; charset=utf-8", 304: nil}},
	"POST /api/upgrade-request": {tagOld, "Ask for an image", "The same POST is sent again until it answers 200.", map[string]any{}, old()},
	"GET /api/upgrade-request/{hash}": {tagOld, "See how a build stands", "By its request_hash or its image_hash.",
		nil, old()},
	"GET /api/files/{hash}": {tagOld, "The files of a result", "", nil, map[int]any{200: []entry{}, 400: answer2018{}, 404: answer2018{}, 500: answer2018{}, 503: answer2018{}}},
}

// same names the routes that answer what another does.
var same = map[string]string{
	"POST /api/build":            "POST /api/v1/build",
	"GET /api/build/{hash}":      "GET /api/v1/build/{hash}",
	"GET /json/latest.json":      "GET /api/v1/latest",
	"GET /api/overview":          "GET /api/v1/overview",
	"GET /overview":              "GET /api/v1/overview",
	"GET /json/v1/overview.json": "GET /api/v1/overview",
	"GET /api/latest":            "GET /api/v1/latest",
	"GET /json/v1/latest.json":   "GET /api/v1/latest",

	"GET /json/v1/snapshots/targets/{target}/{subtarget}/{file}": "GET /json/v1/releases/{version}/targets/{target}/{subtarget}/{file}",
	"GET /json/v1/snapshots/packages/{file}":                     "GET /json/v1/releases/{version}/packages/{file}",
	"GET /json/snapshots/targets/{target}/{subtarget}/{file}":    "GET /json/releases/{version}/targets/{target}/{subtarget}/{file}",
	"GET /json/snapshots/packages/{file}":                        "GET /json/v1/releases/{version}/packages/{file}",
	"GET /json/releases/{version}/packages/{file}":               "GET /json/v1/releases/{version}/packages/{file}",
}

// answers adds what every route may answer.
func answers(problem any, own map[int]any) map[int]any {
	for _, status := range []int{http.StatusBadRequest, http.StatusInternalServerError, http.StatusServiceUnavailable} {
		if own[status] == nil {
			own[status] = problem
		}
	}
	return own
}

func offers(body any) map[int]any {
	return answers(client.Status{}, map[int]any{200: body, 304: nil})
}

func listed(body any) map[int]any {
	return answers(client.Status{}, map[int]any{200: body, 304: nil, 404: client.Status{}})
}

func file(mediaType string) map[int]any {
	return answers(client.Status{}, map[int]any{200: mediaType, 206: mediaType, 304: nil, 404: client.Status{}, 416: "text/plain; charset=utf-8"})
}

func old() map[int]any {
	own := map[int]any{}
	for _, status := range []int{200, 202, 404, 409, 412, 413, 422, 501} {
		own[status] = answer2018{}
	}
	return answers(answer2018{}, own)
}

var meanings = map[string]string{
	"200": "Done.", "202": "Under way.", "206": "The part that was asked for.", "304": "Not changed.",
	"400": "Final: the request is wrong, or what it asks for is not built here; \"detail\" says what to do.",
	"404": "No such thing, or no longer.", "409": "The packages exclude each other.", "412": "No such version, target or device.",
	"413": "The image is too large for the device.", "416": "No such part.",
	"422": "Final: no such package; the header X-Unknown-Package names it.",
	"500": "Final: the build failed, or this server did.", "501": "There is no image that a running router can flash.",
	"503": "Not now: ask again after Retry-After seconds.",
}

func describe(t *testing.T) *openAPIDoc {
	doc := &openAPIDoc{OpenAPI: "3.1.0", Servers: []map[string]string{{"url": "/"}}, Tags: tags, Paths: map[string]map[string]operation{}}
	doc.Info.Title, doc.Info.Version = "sysup", "1"
	doc.Info.Description = "Firmware on demand for OpenWrt routers. Every answer allows every origin, has a whole number \"status\" " +
		"equal to its HTTP status and, when something is wrong, a sentence in \"detail\"."
	s := newSchemas(t)
	left := map[string]bool{}
	for name := range about {
		left[name] = true
	}
	for name := range same {
		left[name] = true
	}
	for _, rt := range (&server{}).routes() {
		for method, handler := range map[string]handler{"GET": rt.get, "POST": rt.post} {
			if handler == nil {
				continue
			}
			key := method + " " + rt.path
			if !left[key] {
				t.Errorf("%s has no description; add it to about", key)
				continue
			}
			delete(left, key)
			s.add(doc, rt.path, method, key)
		}
	}
	for key := range left {
		t.Errorf("%s is described, but no such route is there", key)
	}
	s.finish()
	doc.Components.Schemas = s.components
	return doc
}

var wildcard = regexp.MustCompile(`\{([a-z]+)(\.\.\.)?\}`)

func (s *schemas) add(doc *openAPIDoc, path, method, key string) {
	d, ok := about[key]
	if !ok {
		d = about[same[key]]
		d.text = "The same as " + strings.TrimPrefix(same[key], "GET ") + ". " + d.text
	}
	o := operation{
		ID: operationID(method, path), Tags: []string{d.tag}, Summary: d.summary, Description: strings.TrimSpace(d.text),
		Responses: map[string]*content{},
	}
	for _, found := range wildcard.FindAllStringSubmatch(path, -1) {
		o.Parameters = append(o.Parameters, pathParameters[found[1]].named(found[1]))
	}
	if d.body != nil {
		o.RequestBody = &content{Description: "A JSON object, whatever its Content-Type says. null counts as absent; names that are not known are passed over.",
			Required: true, Content: s.media(d.body)}
	}
	for status, body := range d.answers {
		code := fmt.Sprint(status)
		o.Responses[code] = &content{Description: meanings[code], Content: s.media(body), Headers: headersOf(status, key)}
	}
	path = wildcard.ReplaceAllString(path, "{$1}")
	if doc.Paths[path] == nil {
		doc.Paths[path] = map[string]operation{}
	}
	doc.Paths[path][strings.ToLower(method)] = o
}

var pathParameters = map[string]parameter{
	"hash":      {Description: "A request_hash: 64 hexadecimal digits.", Schema: schema{"type": "string", "pattern": "^[0-9a-f]{64}$"}},
	"version":   {Description: "As in the overview: \"24.10.5\", \"SNAPSHOT\".", Schema: schema{"type": "string"}},
	"target":    {Description: "The first half of a target: \"x86\".", Schema: schema{"type": "string"}},
	"subtarget": {Description: "The second half of a target: \"64\".", Schema: schema{"type": "string"}},
	"path":      {Description: "bin_dir, a slash and the name of a file.", Schema: schema{"type": "string"}},
	"file":      {Description: "The name of a file: \"index.json\".", Schema: schema{"type": "string"}},
	"name":      {Description: "The name of a key or its signature: \"server.pub\".", Schema: schema{"type": "string"}},
}

func (p parameter) named(name string) parameter {
	p.Name, p.In, p.Required = name, "path", true
	return p
}

func operationID(method, path string) string {
	words := regexp.MustCompile(`[A-Za-z0-9]+`).FindAllString(path, -1)
	return strings.ToLower(method) + "-" + strings.Join(words, "-")
}

func headersOf(status int, key string) map[string]any {
	header := func(text string, kind string) any {
		return schema{"description": text, "schema": schema{"type": kind}}
	}
	headers := map[string]any{}
	if status == http.StatusServiceUnavailable {
		headers["Retry-After"] = header("Seconds to wait.", "integer")
	}
	if status == http.StatusUnprocessableEntity {
		headers["X-Unknown-Package"] = header("The package that is not known.", "string")
	}
	if strings.Contains(key, "/api/v1/build") && (status == http.StatusOK || status == http.StatusAccepted) {
		headers["X-Imagebuilder-Status"] = header("queued, a stage of the build, done or failed.", "string")
		headers["X-Queue-Position"] = header("1 for the next build; 0 unless this one is queued.", "integer")
	}
	if len(headers) == 0 {
		return nil
	}
	return headers
}

// schemas makes the schemas of the types, with what their comments say.
type schemas struct {
	t          *testing.T
	reflector  jsonschema.Reflector
	comments   map[string]string // "Request.Version" → text
	components map[string]schema
	types      map[string]reflect.Type
}

func newSchemas(t *testing.T) *schemas {
	s := &schemas{t: t, comments: comments(t), components: map[string]schema{}, types: map[string]reflect.Type{}}
	s.reflector.AddTypeMapping(client.Repositories{}, map[string]string{})
	s.reflector.AddTypeMapping(json.RawMessage{}, new(any))
	return s
}

// media is the content of a body: JSON of that type, or any bytes of that
// media type.
func (s *schemas) media(body any) map[string]schema {
	switch body := body.(type) {
	case nil:
		return nil
	case string:
		if body == "application/json" {
			return map[string]schema{body: {"schema": schema{"type": "object"}}}
		}
		return map[string]schema{body: {"schema": schema{"type": "string"}}}
	}
	return map[string]schema{"application/json": {"schema": s.of(body)}}
}

func (s *schemas) of(value any) schema {
	made, err := s.reflector.Reflect(value,
		jsonschema.DefinitionsPrefix("#/components/schemas/"),
		jsonschema.CollectDefinitions(func(name string, d jsonschema.Schema) { s.components[name] = generic(s.t, d) }),
		jsonschema.RootRef,
		jsonschema.InterceptDefName(func(t reflect.Type, _ string) string {
			name := strings.ToUpper(t.Name()[:1]) + t.Name()[1:]
			s.types[name] = t
			return name
		}),
		jsonschema.InterceptNullability(func(p jsonschema.InterceptNullabilityParams) {
			p.Schema.RemoveType(jsonschema.Null)
		}))
	if err != nil {
		s.t.Fatal(err)
	}
	return generic(s.t, made)
}

func generic(t *testing.T, from any) schema {
	b, err := json.Marshal(from)
	if err != nil {
		t.Fatal(err)
	}
	var to schema
	if err := json.Unmarshal(b, &to); err != nil {
		t.Fatal(err)
	}
	return to
}

// finish adds to the members what their types alone do not say: the comment,
// of an answer which are always there, of a request what it has to be.
func (s *schemas) finish() {
	for name, component := range s.components {
		members, _ := component["properties"].(map[string]any)
		var always []string
		for _, field := range reflect.VisibleFields(s.types[name]) {
			member, omit, _ := strings.Cut(field.Tag.Get("json"), ",")
			m, ok := members[member].(schema)
			if !ok {
				continue
			}
			if text := s.comments[s.owner(name, field)]; text != "" {
				m["description"] = text
			}
			if !strings.Contains(omit, "omit") {
				always = append(always, member)
			}
		}
		if name == "Request" {
			always = []string{"version", "target"}
			restrict(members)
		}
		if len(always) > 0 {
			component["required"] = always
		}
	}
}

// owner is the key of a field's comment: that of the type where it stands.
func (s *schemas) owner(name string, field reflect.StructField) string {
	at := s.types[name]
	for _, i := range field.Index[:len(field.Index)-1] {
		at = at.Field(i).Type
	}
	return at.Name() + "." + field.Name
}

// restrict says of a request's members what build.Request.Check says, and how
// laxly they are read.
func restrict(members map[string]any) {
	patterns := build.Patterns()
	text := func(name string, limits schema) schema {
		limits["type"], limits["pattern"] = "string", patterns[name]
		return limits
	}
	names := schema{"type": "array", "maxItems": build.MaxPackages, "items": schema{"type": "string"}}
	set := func(name string, alternatives ...any) {
		m := schema{"anyOf": append(alternatives, schema{"type": "null"})}
		if old, ok := members[name].(schema); ok && old["description"] != nil {
			m["description"] = old["description"]
		}
		members[name] = m
	}
	empty := schema{"const": ""}
	for _, name := range []string{"distro", "version_code", "profile", "filesystem", "client"} {
		set(name, text(name, schema{}), empty)
	}
	members["version"] = text("version", schema{"description": members["version"].(schema)["description"]})
	members["target"] = text("target", schema{"description": members["target"].(schema)["description"]})
	names["items"] = schema{"anyOf": []any{text("packages", schema{}), empty}}
	set("packages", names, schema{"type": "object", "additionalProperties": schema{"type": "string"}, "description": "names to versions; the names count"})
	members["packages"].(schema)["description"] = `Names, with "-" before those to leave out.`
	versions := schema{"type": "object", "maxProperties": build.MaxPackages, "additionalProperties": text("packages_versions", schema{})}
	set("packages_versions", versions, schema{"type": "array", "maxItems": 0})
	set("diff_packages", schema{"type": "boolean"})
	set("rootfs_size_mb", schema{"type": "integer", "minimum": 0, "maximum": build.MaxRootfsSizeMB}, schema{"type": "string", "pattern": "^[0-9]{0,4}$"})
	set("defaults", schema{"type": "string", "maxLength": build.MaxDefaults})
	feeds := schema{"type": "object", "maxProperties": build.MaxRepositories, "additionalProperties": text("repositories", schema{})}
	set("repositories", feeds, schema{"type": "array", "maxItems": 0})
	set("repositories_mode", schema{"enum": []string{"append", "replace", ""}})
	keys := schema{"type": "array", "maxItems": build.MaxKeys, "items": schema{"anyOf": []any{text("repository_keys", schema{}), empty}}}
	set("repository_keys", keys)
}

// comments reads the comments of the fields of the types on the wire.
func comments(t *testing.T) map[string]string {
	all := map[string]string{}
	for _, file := range []string{"../client/wire.go", "overview.go", "json2021.go", "v2018.go", "store.go", "health.go"} {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			if structure, ok := spec.Type.(*ast.StructType); ok {
				for _, field := range structure.Fields.List {
					for _, name := range field.Names {
						text := strings.TrimSpace(strings.ReplaceAll(field.Doc.Text()+field.Comment.Text(), "\n", " "))
						all[spec.Name.Name+"."+name.Name] = regexp.MustCompile("^"+name.Name+" (is|are) ").ReplaceAllString(text, "")
					}
				}
			}
			return false
		})
	}
	return all
}

// docsTemplate is the page for people: the same document, to read from top to
// bottom, without a script.
var docsTemplate = template.Must(template.New("docs.tmpl").Funcs(template.FuncMap{
	"upper": strings.ToUpper,
	"in":    func(o operation, tag string) bool { return slices.Contains(o.Tags, tag) },
	"type":  typeName,
	"lines": func(m map[string]any) []string { return slices.Sorted(maps.Keys(m)) },
	"must": func(component schema, name string) bool {
		list, _ := component["required"].([]string)
		return slices.Contains(list, name)
	},
}).ParseFiles("testdata/docs.tmpl"))

// typeName says in a few words what a member may be; HTML of our own making.
func typeName(value any) template.HTML {
	s, _ := value.(schema)
	switch {
	case s["$ref"] != nil:
		name := strings.TrimPrefix(s["$ref"].(string), "#/components/schemas/")
		return template.HTML(fmt.Sprintf(`<a href="#%[1]s">%[1]s</a>`, name))
	case s["anyOf"] != nil:
		var names []string
		for _, alternative := range s["anyOf"].([]any) {
			if a, _ := alternative.(schema); a["const"] == nil && a["type"] != "null" {
				names = append(names, string(typeName(alternative)))
			}
		}
		return template.HTML(strings.Join(names, " or "))
	case s["enum"] != nil:
		var words []string
		for _, word := range s["enum"].([]string) {
			words = append(words, fmt.Sprintf("%q", word))
		}
		return template.HTML(template.HTMLEscapeString(strings.Join(words, " or ")))
	case s["type"] == "array" && s["items"] != nil:
		return "list of " + typeName(s["items"])
	case s["additionalProperties"] != nil:
		return "object of " + typeName(s["additionalProperties"])
	case s["type"] == nil:
		return "any"
	}
	return template.HTML(template.HTMLEscapeString(fmt.Sprint(s["type"])))
}
