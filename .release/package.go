package main

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/goreleaser/nfpm/v2"
	_ "github.com/goreleaser/nfpm/v2/deb"
	"github.com/goreleaser/nfpm/v2/files"
	_ "github.com/goreleaser/nfpm/v2/rpm"
)

// writeTexts has a program write its completions and its man pages into a directory.
func writeTexts(binary, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		text, err := output(dir, binary, "completion", shell)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "weir."+shell), []byte(text), 0o644); err != nil {
			return err
		}
	}
	man := filepath.Join(dir, "man")
	if err := command(dir, binary, "man", man); err != nil {
		return err
	}
	pages, err := filepath.Glob(filepath.Join(man, "*.8"))
	if err != nil || len(pages) == 0 {
		return fmt.Errorf("%s writes no man pages: %v", binary, err)
	}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			return err
		}
		var b bytes.Buffer
		z, err := gzip.NewWriterLevel(&b, gzip.BestCompression) // without a time in its head
		if err != nil {
			return err
		}
		if _, err := z.Write(text); err != nil {
			return err
		}
		if err := z.Close(); err != nil {
			return err
		}
		if err := os.WriteFile(page+".gz", b.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// units are the files of examples/systemd in a package, and where they go.
var units = map[string]string{
	"weir.service":      "/usr/lib/systemd/system/weir.service",
	"weir-pull.service": "/usr/lib/systemd/system/weir-pull.service",
	"weir-pull.timer":   "/usr/lib/systemd/system/weir-pull.timer",
	"sysusers.conf":     "/usr/lib/sysusers.d/weir.conf",
	"tmpfiles.conf":     "/usr/lib/tmpfiles.d/weir.conf",
	"modules-load.conf": "/usr/lib/modules-load.d/weir.conf",
	"names.conf":        "/usr/share/doc/weir/names.conf", // a drop-in that an administrator may want
}

// packaged returns a file of examples/systemd as a package has it: the administrator's places become the distribution's.
func packaged(text string) string {
	return strings.NewReplacer(
		"/usr/local/bin/weir ", "/usr/bin/weir ",
		"-f /srv/weir/current", "-f /etc/weir -f /srv/weir/current",
		"# /etc/sysusers.d/", "# /usr/lib/sysusers.d/", "# /etc/tmpfiles.d/", "# /usr/lib/tmpfiles.d/", "# /etc/modules-load.d/", "# /usr/lib/modules-load.d/",
	).Replace(text)
}

// packages makes the packages of a program. texts is what writeTexts has written.
func (r *release) packages(p platform, binary, texts string) error {
	tmp, err := os.MkdirTemp("", "weir-package-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	var contents files.Contents
	add := func(source, destination, kind, packager string, mode os.FileMode) {
		contents = append(contents, &files.Content{Source: source, Destination: destination, Type: kind, Packager: packager,
			FileInfo: &files.ContentFileInfo{Owner: "root", Group: "root", Mode: mode, MTime: r.date}})
	}
	add(binary, "/usr/bin/weir", files.TypeFile, "", 0o755)
	for name, destination := range units {
		text, err := os.ReadFile(filepath.Join(r.source, "examples/systemd", name))
		if err != nil {
			return err
		}
		file := filepath.Join(tmp, name)
		if err := os.WriteFile(file, []byte(packaged(string(text))), 0o644); err != nil {
			return err
		}
		add(file, destination, files.TypeFile, "", 0o644)
	}
	scripts := filepath.Join(r.source, ".release/package")
	add(filepath.Join(scripts, "weir.yaml"), "/etc/weir/weir.yaml", files.TypeConfigNoReplace, "", 0o644)
	add(filepath.Join(texts, "weir.bash"), "/usr/share/bash-completion/completions/weir", files.TypeFile, "", 0o644)
	add(filepath.Join(texts, "weir.fish"), "/usr/share/fish/vendor_completions.d/weir.fish", files.TypeFile, "", 0o644)
	add(filepath.Join(texts, "weir.zsh"), "/usr/share/zsh/vendor-completions/_weir", files.TypeFile, "deb", 0o644)
	add(filepath.Join(texts, "weir.zsh"), "/usr/share/zsh/site-functions/_weir", files.TypeFile, "rpm", 0o644)
	pages, err := filepath.Glob(filepath.Join(texts, "man/*.gz"))
	if err != nil {
		return err
	}
	for _, page := range pages {
		add(page, "/usr/share/man/man8/"+filepath.Base(page), files.TypeFile, "", 0o644)
	}
	for _, format := range []string{"deb", "rpm"} {
		info := nfpm.WithDefaults(&nfpm.Info{
			Name: "weir", Arch: p.nfpm, Platform: "linux", Version: r.version, MTime: r.date, DisableGlobbing: true,
			Section: "net", Priority: "optional", Maintainer: "weir maintainers <weir@localhost>",
			Description: "Kubernetes Services from a directory of YAML\nweir gives a Linux node Kubernetes Services without a control plane.",
			Overridables: nfpm.Overridables{
				Recommends: []string{"git"}, Suggests: []string{"iptables"}, Umask: 0o022, Contents: contents,
				Scripts: nfpm.Scripts{
					PostInstall: filepath.Join(scripts, "postinstall"), PreRemove: filepath.Join(scripts, "preremove"), PostRemove: filepath.Join(scripts, "postremove"),
				},
				RPM: nfpm.RPM{BuildHost: "localhost", Summary: "Kubernetes Services from a directory of YAML"},
			},
		})
		if err := nfpm.Validate(info); err != nil {
			return err
		}
		packager, err := nfpm.Get(format)
		if err != nil {
			return err
		}
		f, err := os.Create(r.path(packager.ConventionalFileName(info)))
		if err != nil {
			return err
		}
		if err := packager.Package(info, f); err != nil {
			f.Close()
			return fmt.Errorf("%s: %w", f.Name(), err)
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}
