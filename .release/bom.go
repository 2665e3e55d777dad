package main

import (
	"cmp"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// bom writes what is in a program, by its own word, in the CycloneDX format.
func (r *release) bom(binary string) error {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return err
	}
	program, err := os.ReadFile(binary)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(program)
	bom := billOf(info, r.date, sum)
	f, err := os.Create(binary + ".cdx.json")
	if err != nil {
		return err
	}
	if err := cdx.NewBOMEncoder(f, cdx.BOMFileFormatJSON).SetPretty(true).EncodeVersion(bom, cdx.SpecVersion1_6); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

func billOf(info *buildinfo.BuildInfo, date time.Time, sum [sha256.Size]byte) *cdx.BOM {
	bom := cdx.NewBOM()
	// A UUID of version 8, whose bits are the program's: another program has another one.
	id := sum[:16]
	id = append([]byte{}, id...)
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80
	bom.SerialNumber = fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
	main := component(cdx.ComponentTypeApplication, info.Main.Path, info.Main.Version)
	main.Hashes = &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: hex.EncodeToString(sum[:])}}
	var properties []cdx.Property
	for _, s := range info.Settings {
		properties = append(properties, cdx.Property{Name: "go:build:" + s.Key, Value: s.Value})
	}
	main.Properties = &properties
	bom.Metadata = &cdx.Metadata{Timestamp: date.UTC().Format(time.RFC3339), Component: &main}
	std := component(cdx.ComponentTypeLibrary, "std", info.GoVersion)
	components := []cdx.Component{std}
	needs := []string{std.BOMRef}
	for _, m := range info.Deps {
		var used *debug.Module = m
		if m.Replace != nil {
			used = m.Replace
		}
		c := component(cdx.ComponentTypeLibrary, used.Path, cmp.Or(used.Version, m.Version))
		if used.Sum != "" {
			c.Properties = &[]cdx.Property{{Name: "go:sum", Value: used.Sum}}
		}
		components, needs = append(components, c), append(needs, c.BOMRef)
	}
	bom.Components = &components
	bom.Dependencies = &[]cdx.Dependency{{Ref: main.BOMRef, Dependencies: &needs}}
	return bom
}

func component(kind cdx.ComponentType, path, version string) cdx.Component {
	purl := "pkg:golang/" + path + "@" + version
	return cdx.Component{Type: kind, Name: path, Version: version, PackageURL: purl, BOMRef: purl}
}
