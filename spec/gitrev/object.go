package gitrev

import (
	"bufio"
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// The types of Git objects, as packs number them.
const (
	typeCommit   = 1
	typeTree     = 2
	typeOfsDelta = 6
	typeRefDelta = 7
)

const (
	// maxObject limits the size of objects that are read: commits and trees.
	maxObject = 64 << 20
	// maxDepth limits the chain of deltas between an object and its base, as Git does.
	maxDepth = 4095
	// maxAlternates limits the chain of object stores that refer to each other.
	maxAlternates = 5
)

var errAbsent = errors.New("object is not there")

// errForged means that the object store has other content under an ID than the ID is of.
var errForged = errors.New("its content is not the one that it is named for; run git fsck")

// object returns the type and content of an object, which are those that its ID names, whatever the store has.
func (r *Repo) object(id ID, depth int) (int, []byte, error) {
	typ, data, err := objectIn(filepath.Join(r.common, "objects"), id, depth, maxAlternates)
	if err == nil && hash(typeName(typ), data) != id {
		err = errForged
	}
	if err != nil {
		return 0, nil, fmt.Errorf("read git object %s: %w", id, err)
	}
	return typ, data, nil
}

func typeName(typ int) string {
	if typ == typeCommit {
		return "commit"
	}
	return "tree"
}

// maxCommit limits the size of a commit that Commit returns.
const maxCommit = 1 << 20

// Commit returns the content of a commit.
func (r *Repo) Commit(commit string) ([]byte, error) {
	data, err := r.commitObject(commit)
	if err == nil && len(data) > maxCommit {
		return nil, fmt.Errorf("commit %s: %d bytes, more than the limit of %d", commit, len(data), maxCommit)
	}
	return data, err
}

func (r *Repo) commitObject(commit string) ([]byte, error) {
	id, ok := parseID(commit)
	if !ok {
		return nil, fmt.Errorf("commit %s: only SHA-1 repositories can be compared", commit)
	}
	typ, data, err := r.object(id, 0)
	if err == nil && typ != typeCommit {
		err = fmt.Errorf("commit %s: not a commit", commit)
	}
	return data, err
}

// objectIn looks in one object store, and in the stores that it borrows from.
func objectIn(dir string, id ID, depth, borrowed int) (int, []byte, error) {
	typ, data, err := loose(dir, id)
	if !errors.Is(err, errAbsent) {
		return typ, data, err
	}
	indexes, _ := filepath.Glob(filepath.Join(dir, "pack", "pack-*.idx"))
	for _, idx := range indexes {
		off, err := findPacked(idx, id)
		if errors.Is(err, errAbsent) || errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, nil, err
		}
		return packed(dir, idx, off, depth)
	}
	if borrowed == 0 {
		return 0, nil, errAbsent
	}
	for _, other := range alternates(dir) {
		typ, data, err := objectIn(other, id, depth, borrowed-1)
		if !errors.Is(err, errAbsent) {
			return typ, data, err
		}
	}
	return 0, nil, errAbsent
}

// loose reads an object that is stored in one file by itself.
func loose(dir string, id ID) (int, []byte, error) {
	hex := id.String()
	f, err := openRegular(filepath.Join(dir, hex[:2], hex[2:]))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil, errAbsent
	}
	if err != nil {
		return 0, nil, err
	}
	defer f.Close()
	z, err := zlib.NewReader(f)
	if err != nil {
		return 0, nil, err
	}
	in := bufio.NewReader(z)
	head, err := in.ReadString(0)
	if err != nil {
		return 0, nil, err
	}
	var name string
	var size int64
	if _, err := fmt.Sscanf(head, "%s %d\x00", &name, &size); err != nil {
		return 0, nil, fmt.Errorf("object header %q: %w", head, err)
	}
	data, err := exactly(in, size)
	switch name {
	case "commit":
		return typeCommit, data, err
	case "tree":
		return typeTree, data, err
	}
	return 0, nil, fmt.Errorf("a %s is neither commit nor tree", name)
}

// exactly reads all of r, which must be size bytes.
func exactly(r io.Reader, size int64) ([]byte, error) {
	if size < 0 || size > maxObject {
		return nil, fmt.Errorf("object of %d bytes: more than the limit of %d", size, maxObject)
	}
	data, err := io.ReadAll(io.LimitReader(r, size+1))
	if err == nil && int64(len(data)) != size {
		err = io.ErrUnexpectedEOF
	}
	return data, err
}

// The layout of a version 2 pack index: a header, 256 counts, then one column each of IDs, checksums, and offsets, and at
// last the offsets that need 64 bits.
const (
	idxFanout = 8
	idxIDs    = idxFanout + 256*4
)

// findPacked returns the offset of an object in the pack that the index belongs to.
func findPacked(idx string, id ID) (int64, error) {
	f, err := openRegular(idx)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	head := make([]byte, idxIDs)
	if _, err := f.ReadAt(head, 0); err != nil {
		return 0, fmt.Errorf("%s: %w", idx, err)
	}
	if string(head[:idxFanout]) != "\xfftOc\x00\x00\x00\x02" {
		return 0, fmt.Errorf("%s: not a pack index of version 2", idx)
	}
	count := func(b int) int64 { return int64(binary.BigEndian.Uint32(head[idxFanout+4*b:])) }
	var lo, hi, n int64 = 0, count(int(id[0])), count(255)
	if id[0] > 0 {
		lo = count(int(id[0]) - 1)
	}
	var at ID
	for lo < hi {
		mid := (lo + hi) / 2
		if _, err := f.ReadAt(at[:], idxIDs+mid*int64(len(at))); err != nil {
			return 0, fmt.Errorf("%s: %w", idx, err)
		}
		switch c := bytes.Compare(at[:], id[:]); {
		case c == 0:
			return packOffset(f, n, mid)
		case c < 0:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return 0, errAbsent
}

// packOffset returns the i-th of n offsets of an index.
func packOffset(f io.ReaderAt, n, i int64) (int64, error) {
	var b [8]byte
	offsets := idxIDs + n*(int64(len(ID{}))+4)
	if _, err := f.ReadAt(b[:4], offsets+4*i); err != nil {
		return 0, err
	}
	off := binary.BigEndian.Uint32(b[:4])
	if off < 1<<31 {
		return int64(off), nil
	}
	if _, err := f.ReadAt(b[:], offsets+4*n+8*int64(off-1<<31)); err != nil {
		return 0, err
	}
	if wide := binary.BigEndian.Uint64(b[:]); wide < 1<<62 {
		return int64(wide), nil
	}
	return 0, errors.New("offset in pack index out of range")
}

// packed reads the object at an offset of a pack.
func packed(dir, idx string, off int64, depth int) (int, []byte, error) {
	f, err := openRegular(strings.TrimSuffix(idx, ".idx") + ".pack")
	if err != nil {
		return 0, nil, err
	}
	defer f.Close()
	return packedAt(dir, f, off, depth)
}

func packedAt(dir string, f io.ReaderAt, off int64, depth int) (int, []byte, error) {
	if depth > maxDepth {
		return 0, nil, errors.New("too many deltas in a row")
	}
	in := bufio.NewReader(io.NewSectionReader(f, off, 1<<62-off))
	typ, size, err := entryHeader(in)
	if err != nil {
		return 0, nil, err
	}
	var base func() (int, []byte, error)
	switch typ {
	case typeOfsDelta:
		back, err := ofsDistance(in)
		if err != nil || back <= 0 || back > off {
			return 0, nil, fmt.Errorf("delta at %d: base out of range", off)
		}
		base = func() (int, []byte, error) { return packedAt(dir, f, off-back, depth+1) }
	case typeRefDelta:
		var id ID
		if _, err := io.ReadFull(in, id[:]); err != nil {
			return 0, nil, err
		}
		base = func() (int, []byte, error) { return objectIn(dir, id, depth+1, maxAlternates) }
	}
	z, err := zlib.NewReader(in)
	if err != nil {
		return 0, nil, err
	}
	data, err := exactly(z, size)
	if err != nil || base == nil {
		return typ, data, err
	}
	typ, from, err := base()
	if err != nil {
		return 0, nil, err
	}
	data, err = applyDelta(from, data)
	return typ, data, err
}

// entryHeader reads the type and the size of an entry of a pack.
func entryHeader(in io.ByteReader) (typ int, size int64, err error) {
	b, err := in.ReadByte()
	typ, size = int(b>>4&7), int64(b&15)
	for shift := 4; err == nil && b&0x80 != 0; shift += 7 {
		if shift > 35 {
			return 0, 0, errors.New("size in pack out of range")
		}
		b, err = in.ReadByte()
		size |= int64(b&0x7f) << shift
	}
	return typ, size, err
}

// ofsDistance reads the distance from a delta back to its base.
func ofsDistance(in io.ByteReader) (int64, error) {
	b, err := in.ReadByte()
	d := int64(b & 0x7f)
	for err == nil && b&0x80 != 0 {
		if d > 1<<50 {
			return 0, errors.New("distance in pack out of range")
		}
		b, err = in.ReadByte()
		d = (d+1)<<7 | int64(b&0x7f)
	}
	return d, err
}

var errDelta = errors.New("broken delta in pack")

// applyDelta rebuilds an object from its base.
func applyDelta(base, delta []byte) ([]byte, error) {
	in := bytes.NewReader(delta)
	from, err1 := binary.ReadUvarint(in)
	size, err2 := binary.ReadUvarint(in)
	if err1 != nil || err2 != nil || from != uint64(len(base)) || size > maxObject {
		return nil, errDelta
	}
	out := make([]byte, 0, size)
	for in.Len() > 0 {
		op, _ := in.ReadByte()
		if op&0x80 == 0 {
			if op == 0 || int(op) > in.Len() || len(out)+int(op) > int(size) {
				return nil, errDelta
			}
			at := len(delta) - in.Len()
			out = append(out, delta[at:at+int(op)]...)
			_, _ = in.Seek(int64(op), io.SeekCurrent)
			continue
		}
		off, n, err := copyOperands(in, op)
		if err != nil || off+n > len(base) || len(out)+n > int(size) {
			return nil, errDelta
		}
		out = append(out, base[off:off+n]...)
	}
	if len(out) != int(size) {
		return nil, errDelta
	}
	return out, nil
}

// copyOperands reads the offset and length of a copy. The bits of op tell which of their bytes are present.
func copyOperands(in io.ByteReader, op byte) (off, n int, err error) {
	for i := range 7 {
		if op>>i&1 == 0 {
			continue
		}
		b, err := in.ReadByte()
		if err != nil {
			return 0, 0, err
		}
		if i < 4 {
			off |= int(b) << (8 * i)
		} else {
			n |= int(b) << (8 * (i - 4))
		}
	}
	if n == 0 {
		n = 0x10000
	}
	return off, n, nil
}
