// template CHART NAMESPACE [VALUES-JSON]: what `helm template` prints, for the functions that our chart uses. Helm renders with the same two
// packages, text/template and sprig; Debian has no helm.
package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig"
	"gopkg.in/yaml.v3"
)

func must(err error) {
	if err != nil {
		println(err.Error())
		os.Exit(1)
	}
}

func read(path string) map[string]interface{} {
	text, err := os.ReadFile(path)
	must(err)
	values := map[string]interface{}{}
	must(yaml.Unmarshal(text, values))
	return values
}

// merge puts the values of over into those of base, mapping by mapping, as helm does with --values.
func merge(base, over map[string]interface{}) {
	for key, value := range over {
		below, both := base[key].(map[string]interface{})
		if mapping, ok := value.(map[string]interface{}); ok && both {
			merge(below, mapping)
		} else {
			base[key] = value
		}
	}
}

func main() {
	chart, namespace := os.Args[1], os.Args[2]
	values := read(filepath.Join(chart, "values.yaml"))
	if len(os.Args) > 3 {
		over := map[string]interface{}{}
		must(json.Unmarshal([]byte(os.Args[3]), &over))
		merge(values, over)
	}
	about := map[string]interface{}{}
	for key, value := range read(filepath.Join(chart, "Chart.yaml")) {
		about[strings.ToUpper(key[:1])+key[1:]] = value
	}
	given := map[string]interface{}{
		"Values":  values,
		"Chart":   about,
		"Release": map[string]interface{}{"Name": "podwire", "Namespace": namespace},
	}
	files, err := filepath.Glob(filepath.Join(chart, "templates", "*.yaml"))
	must(err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		must(err)
		// As helm: a value that does not exist is empty, unless it is used as a mapping.
		parsed, err := template.New(file).Funcs(sprig.TxtFuncMap()).Option("missingkey=zero").Parse(string(text))
		must(err)
		os.Stdout.WriteString("---\n")
		must(parsed.Execute(os.Stdout, given))
	}
}
