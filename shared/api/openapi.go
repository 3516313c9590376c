package api

import (
	"bytes"
	_ "embed"
	"net/http"
	"time"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// The description of this API for programs (OpenAPI 3.1) and for people.
// `go generate ./shared/api` makes both from the routes and the types.
//
//go:generate go test -run ^TestOpenAPI$ -update .
var (
	//go:embed openapi.json
	openAPI []byte
	//go:embed docs.html
	docsPage []byte
)

func (s *server) getOpenAPI(w *response, r *http.Request) error {
	return serveDocument(w, r, build.PolicyJSON.ContentType, openAPI)
}

// getDocs answers a page that can be read and does nothing.
func (s *server) getDocs(w *response, r *http.Request) error {
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
	return serveDocument(w, r, "text/html; charset=utf-8", docsPage)
}

func serveDocument(w *response, r *http.Request, contentType string, body []byte) error {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Cache-Control", build.CacheBriefly)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
	return nil
}
