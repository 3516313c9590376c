package imagebuilder

import (
	"encoding/json"
	"os"
	"strings"
	"time"
)

// A list of parts (CycloneDX) names the packages and their licenses. The tree
// writes the time of day into it.

const maxParts = 4 << 20

func isParts(name string) bool { return strings.HasSuffix(name, ".bom.cdx.json") }

// settleParts sets the time in the list to SOURCE_DATE_EPOCH and returns what it
// says, without the number that it gets at random. A list that cannot be read is
// left as it is.
func settleParts(root *os.Root, name string, epoch int64) (map[string]any, error) {
	text, err := readAll(root, name, maxParts)
	if err != nil {
		return nil, err
	}
	var list map[string]any
	if json.Unmarshal(text, &list) != nil {
		return nil, nil
	}
	if metadata, ok := list["metadata"].(map[string]any); ok && metadata["timestamp"] != nil {
		metadata["timestamp"] = time.Unix(epoch, 0).UTC().Format(time.RFC3339)
	}
	if text, err = json.Marshal(list); err != nil {
		return nil, err
	}
	if err := root.Remove(name); err != nil { // it is the job's
		return nil, fault("write "+name, err)
	}
	delete(list, "serialNumber")
	return list, fault("write "+name, root.WriteFile(name, text, 0o644))
}
