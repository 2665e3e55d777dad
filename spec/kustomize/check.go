package kustomize

//lint:file-ignore SA1019 people still write the deprecated fields of kustomizations

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"sigs.k8s.io/kustomize/api/konfig"
	"sigs.k8s.io/kustomize/api/types"
	"sigs.k8s.io/yaml"

	"weir/spec/document"
)

// maxJoins limits the replacements of a build that join the old value with the new one. Each can double a value.
const maxJoins = 16

// kustomization checks a kustomization file before kustomize sees it, and returns what kustomize shall read: the same,
// with the wish for origins.
func (b *build) kustomization(real string, data []byte) ([]byte, error) {
	asJSON, err := yaml.YAMLToJSON(data)
	if err != nil {
		return data, nil // kustomize says the same
	}
	var k types.Kustomization
	var fields map[string]json.RawMessage
	if err := errors.Join(k.Unmarshal(data), json.Unmarshal(asJSON, &fields)); err != nil {
		return nil, b.refuse(real, 1, "", document.Printable(err.Error()))
	}
	c := &checker{build: b, file: real, doc: parsed(data)}
	c.check(&k)
	if c.failed {
		return nil, errRefused
	}
	fixed := k
	fixed.FixKustomization()
	if fixed.CheckEmpty() != nil { // which the wish below would hide from kustomize
		return nil, b.refuse(real, 1, "", "is empty, and kustomize refuses that; write what it is to do, or remove it from the kustomization that uses it")
	}
	for name := range fields {
		if strings.EqualFold(name, "buildMetadata") { // as kustomize takes it, in any case
			delete(fields, name)
		}
	}
	fields["buildMetadata"], err = json.Marshal(append(k.BuildMetadata, types.OriginAnnotations))
	if err != nil {
		return nil, err
	}
	return json.Marshal(fields)
}

// parsed returns the first document of a file, in which the lines of fields are found.
func parsed(data []byte) *document.Document {
	texts, _ := document.Split("", data)
	if len(texts) == 0 {
		return document.Parse(document.Text{Line: 1})
	}
	return document.Parse(texts[0])
}

// checker checks one kustomization.
type checker struct {
	*build
	file   string
	doc    *document.Document
	failed bool
}

func (c *checker) fail(field, detail string) {
	c.failed = true
	c.refuse(c.file, c.doc.Line(field), field, detail)
}

// check refuses fields that run programs or reach the network, and paths that lead to nothing or out of the tree.
func (c *checker) check(k *types.Kustomization) {
	const elsewhere = "; build it elsewhere: kustomize build --enable-helm, or the plugins' own flags, into a directory for weir"
	for _, f := range []struct {
		field string
		used  bool
	}{
		{"helmCharts", len(k.HelmCharts) > 0}, {"helmGlobals", k.HelmGlobals != nil}, {"helmChartInflationGenerator", len(k.HelmChartInflationGenerator) > 0},
		{"generators", len(k.Generators) > 0}, {"transformers", len(k.Transformers) > 0}, {"validators", len(k.Validators) > 0},
	} {
		if f.used {
			c.fail(f.field, "runs Helm or a plugin, which weir does not"+elsewhere)
		}
	}
	for _, list := range []struct {
		field string
		paths []string
		dirs  bool // a directory is that of a kustomization
	}{
		{"resources", k.Resources, true}, {"bases", k.Bases, true}, {"components", k.Components, true},
		{"crds", k.Crds, false}, {"configurations", k.Configurations, false},
	} {
		for i, p := range list.paths {
			c.path(fmt.Sprintf("%s[%d]", list.field, i), p, list.dirs)
		}
	}
	if p, ok := k.OpenAPI["path"]; ok {
		c.path("openapi.path", p, false)
	}
	c.patches(k)
	for i, r := range k.Replacements {
		c.optional(fmt.Sprintf("replacements[%d].path", i), r.Path)
		c.replacement(fmt.Sprintf("replacements[%d]", i), &r)
	}
	for i, g := range k.ConfigMapGenerator {
		c.sources(fmt.Sprintf("configMapGenerator[%d]", i), g.KvPairSources)
	}
	for i, g := range k.SecretGenerator {
		c.sources(fmt.Sprintf("secretGenerator[%d]", i), g.KvPairSources)
	}
}

func (c *checker) patches(k *types.Kustomization) {
	for i, p := range k.Patches {
		c.optional(fmt.Sprintf("patches[%d].path", i), p.Path)
	}
	for i, p := range k.PatchesJson6902 {
		c.optional(fmt.Sprintf("patchesJson6902[%d].path", i), p.Path)
	}
	for i, p := range k.PatchesStrategicMerge {
		if !isInline(string(p)) {
			c.path(fmt.Sprintf("patchesStrategicMerge[%d]", i), string(p), false)
		}
	}
}

// isInline reports whether an entry of patchesStrategicMerge is a patch rather than the name of a file.
func isInline(p string) bool { return strings.ContainsAny(p, "\n{") }

func (c *checker) sources(field string, s types.KvPairSources) {
	for i, f := range s.FileSources {
		if _, path, ok := strings.Cut(f, "="); ok {
			f = path
		}
		c.path(fmt.Sprintf("%s.files[%d]", field, i), f, false)
	}
	for i, f := range s.EnvSources {
		c.path(fmt.Sprintf("%s.envs[%d]", field, i), f, false)
	}
	c.optional(field+".env", s.EnvSource)
}

// replacement counts the replacements that join values.
func (c *checker) replacement(field string, r *types.ReplacementField) {
	all := []*types.Replacement{&r.Replacement}
	if r.Path != "" {
		var more []*types.Replacement
		data, err := c.at(r.Path)
		if err == nil && yaml.Unmarshal(data, &more) == nil {
			all = append(all, more...)
		} else {
			var one types.Replacement
			if err == nil && yaml.Unmarshal(data, &one) == nil {
				all = append(all, &one)
			}
		}
	}
	for _, one := range all {
		if one == nil {
			continue
		}
		for _, t := range one.Targets {
			if t != nil && t.Options != nil && t.Options.Delimiter != "" {
				c.joins += max(len(t.FieldPaths), 1)
			}
		}
	}
	if c.joins > maxJoins {
		c.fail(field, fmt.Sprintf("more than %d replacements with a delimiter are not built here; build it elsewhere", maxJoins))
	}
}

// at reads the file that the kustomization calls path.
func (c *checker) at(path string) ([]byte, error) {
	real, dir, err := c.resolve(filepath.Join(filepath.Dir(c.file), path))
	if err != nil || dir {
		return nil, errors.Join(err, os.ErrInvalid)
	}
	return c.read(real)
}

func (c *checker) optional(field, path string) {
	if path != "" {
		c.path(field, path, false)
	}
}

// user is the beginning of an address of ssh. What kustomize fetches begins like this or with github.com, or has a colon.
var user = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9-]*@`)

// path checks a path, which is to be one of the tree. If kustomize builds directories there, one must have a kustomization.
func (c *checker) path(field, path string, dirs bool) {
	switch {
	case path == "":
		c.fail(field, "is empty")
		return
	case strings.Contains(path, ":"), user.MatchString(path), len(path) >= 10 && strings.EqualFold(path[:10], "github.com"):
		c.fail(field, document.Quote(path)+" is not in the tree, and weir fetches nothing; keep a copy of it in the tree")
		return
	}
	full := path
	if !filepath.IsAbs(path) {
		full = filepath.Join(filepath.Dir(c.file), path)
	}
	real, dir, err := c.resolve(full)
	switch {
	case err == nil && dir && dirs && !c.buildable(real):
		c.fail(field, document.Quote(path)+" is a directory without a kustomization.yaml; add one, or name the files in it")
	case err == nil || c.ctx.Err() != nil:
	case absent(err):
		c.fail(field, document.Quote(path)+" does not exist")
	case errors.Is(err, ErrOutside):
		c.fail(field, document.Quote(path)+" leads out of the tree, which is the Git work tree of the directory that -k names, or that directory; keep it in the tree, or allow it with --allow-outside-links")
	default:
		c.fail(field, document.Quote(path)+" cannot be read: "+document.Printable(err.Error()))
	}
}

// buildable reports whether a directory has a kustomization file.
func (c *checker) buildable(dir string) bool {
	return slices.ContainsFunc(konfig.RecognizedKustomizationFileNames(), func(name string) bool {
		_, isDir, err := c.resolve(filepath.Join(dir, name))
		return err == nil && !isDir
	})
}
