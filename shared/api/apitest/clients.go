package apitest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// How what a client makes of an answer begins.
const (
	AsksOn  = "asks on"       // it goes on asking, and shows what follows
	Done    = "done"          // it has what it needs to flash
	Stops   = "stops"         // it shows what follows, and that was it
	ForEver = "asks for ever" // it shows nothing and does not stop by itself
	Throws  = "throws"        // its program stumbles over the answer
)

// Clients tell what each client makes of an answer to its POST or to a poll,
// by the rules of its own source. The names are those of docs/clients.md.
var Clients = map[string]func(Answer) string{
	"luci-2021":         luci2021,
	"luci-2022":         luci(false, firstSteps...),
	"luci-2025":         luci(false, append(firstSteps, "container_setup", "validate_revision", "validate_manifest", "signing_images", "done", "failed")...),
	"luci-rebuilder":    luci(true, firstSteps...),
	"auc-2021":          auc2021,
	"auc":               auc,
	"owut":              owut,
	"firmware-selector": firmwareSelector,
}

// firstSteps are the stages that LuCI has words for since 2021.
var firstSteps = []string{"init", "download_imagebuilder", "unpack_imagebuilder", "calculate_packages_hash", "building_image"}

// luci is LuCI's page since the autumn of 2021. A rebuilder is a second server
// that it sends the same POST to; of that it never looks at queue_position, and
// what it stumbles over leaves a line of a table as it was.
func luci(rebuilder bool, steps ...string) func(Answer) string {
	return func(a Answer) string {
		o := a.object()
		switch a.Status {
		case http.StatusOK:
			return needs(o, "images", "bin_dir", "version_number", "version_code", "id", "target", "build_at")
		case http.StatusAccepted:
			if position, ok := o["queue_position"]; ok && !rebuilder {
				return fmt.Sprintf("%s: queue position %v", AsksOn, position)
			}
			if word := o.text("imagebuilder_status"); slices.Contains(steps, word) {
				return AsksOn + ": " + word
			}
			if rebuilder {
				return AsksOn + ": nothing new"
			}
			return fmt.Sprintf("%s: no step %v", Throws, o["imagebuilder_status"])
		}
		return luciError(a)
	}
}

// luciError is the end of every LuCI: three statuses have a dialogue.
func luciError(a Answer) string {
	switch a.Status {
	case http.StatusBadRequest, http.StatusUnprocessableEntity, http.StatusInternalServerError:
		return stops(a)
	}
	return fmt.Sprintf("%s: %d", ForEver, a.Status)
}

// luci2021 is the page of the first half of 2021, which has no steps.
func luci2021(a Answer) string {
	o := a.object()
	switch a.Status {
	case http.StatusOK:
		return needs(o, "images", "bin_dir", "version_number", "version_code", "target", "build_at")
	case http.StatusAccepted:
		if o.text("request_hash") == "" {
			return Throws + ": no request_hash"
		}
		return fmt.Sprintf("%s: queue position %v", AsksOn, o["queue_position"])
	}
	return luciError(a)
}

// needs is Done if the object has all of that.
func needs(o object, names ...string) string {
	for _, name := range names {
		if value, ok := o[name]; !ok || value == nil || value == "" {
			return Throws + ": no " + name
		}
	}
	images, _ := o["images"].([]any)
	for _, item := range images {
		image, _ := item.(map[string]any)
		for _, name := range []string{"filesystem", "name", "type", "sha256", "sha256_unsigned"} {
			if object(image).text(name) == "" {
				return Throws + ": an image without " + name
			}
		}
	}
	if len(images) == 0 {
		return Throws + ": no images"
	}
	return Done
}

func stops(a Answer) string {
	o := a.object()
	detail, ok := o["detail"].(string)
	if !ok {
		return fmt.Sprintf("%s: detail is %v", Throws, o["detail"])
	}
	for _, name := range []string{"stdout", "stderr"} {
		if output, ok := o[name]; ok {
			if _, isText := output.(string); !isText {
				return fmt.Sprintf("%s: %s is %v", Throws, name, output)
			}
		}
	}
	return Stops + ": " + detail
}

// auc2021 is the C program of 2021 (0.2). It goes by words for the status in
// the body, and prints "message".
func auc2021(a Answer) string {
	o := a.object()
	word, isWord := o["status"].(string)
	switch a.Status {
	case http.StatusOK:
		if _, ok := o["images"].([]any); !ok || o.text("bin_dir") == "" {
			return Stops + ": Bad message"
		}
		if isWord {
			return ForEver + ": " + word
		}
		return Done
	case http.StatusAccepted:
		if o.text("request_hash") == "" || word != "queued" && word != "started" {
			return ForEver + ": it repeats its request at once"
		}
		if position, ok := o["queue_position"].(json.Number); ok {
			return fmt.Sprintf("%s: queue position %s", AsksOn, position)
		}
		return AsksOn
	case http.StatusUnprocessableEntity:
		return Stops + ": unknown package " + cmp.Or(a.Header.Get("X-Unknown-Package"), "(null)")
	case http.StatusInternalServerError:
		return Stops + ": " + cmp.Or(o.text("message"), "Bad message")
	}
	return Stops + ": Bad message"
}

// auc is the C program of 2022 and later (0.3). It prints little.
func auc(a Answer) string {
	o := a.object()
	switch a.Status {
	case http.StatusOK:
		if _, ok := o["images"].([]any); !ok || o.text("bin_dir") == "" {
			return Stops + ": Bad message"
		}
		return Done
	case http.StatusCreated, http.StatusAccepted:
		if o.text("request_hash") == "" {
			return Stops + ": Bad message"
		}
		if position, ok := o["queue_position"].(json.Number); ok {
			return fmt.Sprintf("%s: queue position %s", AsksOn, position)
		}
		return AsksOn
	case http.StatusBadRequest:
		return Stops + ": Invalid argument"
	case http.StatusUnprocessableEntity:
		return Stops + ": unknown package " + cmp.Or(a.Header.Get("X-Unknown-Package"), "(null)")
	case http.StatusInternalServerError:
		return stops(a)
	}
	return Stops + ": Bad message"
}

// owut asks by HEAD for as long as the status is 202, then by GET, and goes by
// the status in the body.
func owut(a Answer) string {
	if a.Head {
		if a.Status == http.StatusAccepted {
			return fmt.Sprintf("%s: %s %s", AsksOn, cmp.Or(a.Header.Get("X-Imagebuilder-Status"), "queued"), a.Header.Get("X-Queue-Position"))
		}
		return "asks by GET"
	}
	o := a.object()
	status, _ := o["status"].(json.Number)
	switch status.String() {
	case "202":
		if o.text("detail") != "queued" {
			return AsksOn + ": " + cmp.Or(o.text("imagebuilder_status"), "setup")
		}
		return fmt.Sprintf("%s: %v ahead of you", AsksOn, o["queue_position"])
	case "200":
		return owutDone(o)
	case "":
		return Throws + ": no status"
	}
	return stops(a)
}

func owutDone(o object) string {
	request, ok := o["request"].(map[string]any)
	if !ok {
		return Throws + ": no request"
	}
	for _, name := range []string{"version_code", "rootfs_size_mb", "defaults"} {
		if _, ok := request[name]; !ok {
			return Throws + ": no request." + name
		}
	}
	if _, ok := o["manifest"].(map[string]any); !ok {
		return Throws + ": no manifest"
	}
	if asked := object(request).text("version_code"); asked != "" && asked != o.text("version_code") {
		return fmt.Sprintf("%s: expected %s, but got %s", Stops, asked, o.text("version_code"))
	}
	return needs(o, "images", "bin_dir", "version_number", "version_code", "build_at", "build_cmd")
}

// firmwareSelector is the page of firmware-selector.openwrt.org.
func firmwareSelector(a Answer) string {
	o := a.object()
	switch a.Status {
	case http.StatusOK:
		for _, name := range []string{"build_cmd", "manifest", "stdout", "stderr", "titles"} {
			if _, ok := o[name]; !ok {
				return Throws + ": no " + name
			}
		}
		return needs(o, "images", "bin_dir", "version_number", "version_code", "target", "build_at")
	case http.StatusAccepted:
		if o.text("request_hash") == "" {
			return Throws + ": no request_hash"
		}
		text := cmp.Or(o.text("imagebuilder_status"), o.text("detail"), "init")
		return fmt.Sprintf("%s: tr-%s", AsksOn, strings.ReplaceAll(text, "_", "-"))
	}
	if strings.Contains(o.text("stderr"), "images are too big") {
		return Stops + ": tr-image-too-big"
	}
	return stops(a)
}
