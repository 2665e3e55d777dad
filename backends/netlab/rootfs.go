package netlab

import (
	"archive/tar"
	"bytes"
	"os"
	"os/exec"
	"testing"
)

// RootFS returns a tar archive with the file system of a container image: busybox as its shell, and the empty directories /www
// and /tmp. It skips the test without busybox.
func RootFS(t testing.TB) []byte {
	t.Helper()
	RequireProgram(t, "busybox")
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var image bytes.Buffer
	w := tar.NewWriter(&image)
	for _, d := range []string{"bin", "www", "tmp"} {
		_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d, Mode: 0o777})
	}
	_ = w.WriteHeader(&tar.Header{Name: "bin/busybox", Mode: 0o755, Size: int64(len(program))})
	_, _ = w.Write(program)
	_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/sh", Linkname: "busybox"})
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return image.Bytes()
}
