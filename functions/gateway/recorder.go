package gateway

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/aws/aws-lambda-go/events"
)

// recorder is the ResponseWriter of one request. Of what a HEAD writes it only
// counts the bytes.
type recorder struct {
	header  http.Header
	sent    http.Header // header at the time of WriteHeader
	status  int
	head    bool
	body    []byte
	written int64
	refused bool // it is too large
}

// errTooLarge ends the copying of an answer that will not be sent.
var errTooLarge = errors.New("this answer is too large for Lambda")

func (w *recorder) Header() http.Header { return w.header }

func (w *recorder) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status, w.sent = status, w.header.Clone()
	}
}

func (w *recorder) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if w.status == http.StatusNoContent || w.status == http.StatusNotModified {
		return 0, http.ErrBodyNotAllowed
	}
	length, _ := strconv.ParseInt(w.sent.Get("Content-Length"), 10, 64) // 0 where it is not known before
	w.refused = w.refused || !w.head && max(length, int64(len(w.body)+len(b))) > maxAnswer
	if w.refused {
		return 0, errTooLarge
	}
	w.written += int64(len(b))
	kept := b
	if w.head {
		kept = b[:min(len(b), sniffed-len(w.body))]
	}
	w.body = append(w.body, kept...)
	return len(b), nil
}

const sniffed = 512 // bytes that tell a content type

// answer is the event's answer. HEAD has the headers of GET and no body.
func (w *recorder) answer() events.APIGatewayV2HTTPResponse {
	w.WriteHeader(http.StatusOK)
	if w.refused {
		return problem(http.StatusInternalServerError, "This answer is too large for this address. Fetch it by the public address of this server.")
	}
	if w.sent.Get("Content-Type") == "" && len(w.body) > 0 {
		w.sent.Set("Content-Type", http.DetectContentType(w.body))
	}
	if w.written > 0 && w.sent.Get("Content-Length") == "" {
		w.sent.Set("Content-Length", strconv.FormatInt(w.written, 10))
	}
	answer := events.APIGatewayV2HTTPResponse{StatusCode: w.status, Cookies: w.sent.Values("Set-Cookie"), Headers: map[string]string{}}
	for name, values := range w.sent {
		if name != "Set-Cookie" {
			answer.Headers[name] = strings.Join(values, ", ")
		}
	}
	answer.Body, answer.IsBase64Encoded = text(w.body)
	return answer
}

// text is a body as an event carries it. Long ones are never text, which may
// become six times as long within JSON.
func text(body []byte) (string, bool) {
	if len(body) <= maxText && utf8.Valid(body) {
		return string(body), false
	}
	return base64.StdEncoding.EncodeToString(body), true
}

// problem is an answer of this package's own, in the form of the API's.
func problem(status int, detail string) events.APIGatewayV2HTTPResponse {
	body, err := json.Marshal(map[string]any{"status": status, "detail": detail})
	if err != nil {
		panic(err) // a number and a string
	}
	return events.APIGatewayV2HTTPResponse{StatusCode: status, Body: string(body) + "\n", Headers: map[string]string{
		"Content-Type": "application/json", "Content-Length": strconv.Itoa(len(body) + 1), "Cache-Control": "private, no-store",
		"Access-Control-Allow-Origin": "*", "X-Content-Type-Options": "nosniff",
	}}
}
