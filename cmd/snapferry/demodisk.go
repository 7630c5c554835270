package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/snapferry/snapferry"
)

const (
	demoFiles = 400
	demoSize  = 192 << 20 // bytes of the image
	demoPage  = 4 << 10
	demoMark  = "snapferry demo: " // every page of every file begins with it
)

// makeDemoDisk makes a disk image with a file system of a few hundred files,
// or, without mkfs.ext4, the same files as a tar stream.
func makeDemoDisk(ctx context.Context, tree, image string) (size int64, note string, err error) {
	if err := makeDemoTree(tree); err != nil {
		return 0, "", err
	}
	mkfs := findTool("mkfs.ext4")
	if mkfs == "" {
		size, err := tarDemoTree(tree, image)
		return size, fmt.Sprintf("%d files as a tar stream: there is no mkfs.ext4 here", demoFiles), err
	}
	cmd := exec.CommandContext(ctx, mkfs, "-q", "-F", "-b", "4096", "-d", tree, image, fmt.Sprintf("%dk", demoSize>>10))
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, "", snapferry.Errorf(snapferry.Internal, "%s: %w: %s", mkfs, err, bytes.TrimSpace(out))
	}
	return demoSize, fmt.Sprintf("ext4 with %d files", demoFiles), nil
}

// findTool returns the path of a program, also from where only root's PATH
// leads; "" when there is none.
func findTool(name string) string {
	for _, dir := range []string{"", "/sbin/", "/usr/sbin/", "/usr/local/sbin/"} {
		if path, err := exec.LookPath(dir + name); err == nil {
			return path
		}
	}
	return ""
}

// makeDemoTree makes files of 4 KiB to 512 KiB, about 100 MiB in all. Half of
// them compress well.
func makeDemoTree(dir string) error {
	random := rand.NewChaCha8([32]byte{1})
	sizes := rand.New(rand.NewPCG(1, 2))
	page := make([]byte, demoPage)
	for i := range demoFiles {
		sub := filepath.Join(dir, fmt.Sprintf("folder%02d", i%20))
		if err := os.MkdirAll(sub, 0o700); err != nil {
			return fileError("make", sub, err)
		}
		var content bytes.Buffer
		for range 1 + sizes.IntN(128) {
			if i%2 == 0 {
				random.Read(page)
			} else {
				fillText(page, random)
			}
			copy(page, fmt.Sprintf("%sfile %03d, page %03d, version 1\n", demoMark, i, content.Len()/demoPage))
			content.Write(page)
		}
		name := filepath.Join(sub, fmt.Sprintf("file%03d", i))
		if err := os.WriteFile(name, content.Bytes(), 0o600); err != nil {
			return fileError("write", name, err)
		}
	}
	return nil
}

// fillText fills p with words.
func fillText(p []byte, random *rand.ChaCha8) {
	words := [...]string{"east ", "west ", "region ", "snapshot ", "block ", "digest ", "segment ", "copy ", "volume ", "leaf\n"}
	for n := 0; n < len(p); {
		n += copy(p[n:], words[random.Uint64()%uint64(len(words))])
	}
}

// tarDemoTree writes the tree as a tar stream, whose size is a multiple of the
// sector's as a disk's must be.
func tarDemoTree(tree, image string) (int64, error) {
	f, err := os.Create(image)
	if err != nil {
		return 0, fileError("make", image, err)
	}
	w := tar.NewWriter(f)
	err = errors.Join(w.AddFS(os.DirFS(tree)), w.Close())
	size, serr := f.Seek(0, io.SeekEnd)
	if err = errors.Join(err, serr, f.Close()); err != nil {
		return 0, snapferry.Errorf(snapferry.Internal, "write %s: %w", image, err)
	}
	return size, nil
}

// changeDemoDisk writes a second image in which pages of files, in about 1 %
// of the blocks, have changed. It returns the bytes of the changed pages.
func changeDemoDisk(ctx context.Context, from, to string) (changed int64, err error) {
	in, err := os.Open(from)
	if err != nil {
		return 0, fileError("open", from, err)
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return 0, fileError("look at", from, err)
	}
	out, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, fileError("make", to, err)
	}
	changed, err = changePages(ctx, in, out, st.Size())
	if err = errors.Join(err, out.Truncate(st.Size()), out.Close()); err != nil {
		var own *snapferry.Error
		var path *fs.PathError
		if errors.As(err, &own) || !errors.As(err, &path) {
			return 0, err
		}
		return 0, fileError("write", to, err)
	}
	return changed, nil
}

func changePages(ctx context.Context, in io.ReaderAt, out io.WriterAt, size int64) (changed int64, err error) {
	block := make([]byte, digestBlock)
	seen := 0
	for off := int64(0); off < size; off += digestBlock {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		p := block[:min(digestBlock, size-off)]
		if _, err := in.ReadAt(p, off); err != nil {
			return 0, err
		}
		if allZero(p) {
			continue // a hole
		}
		if at := bytes.Index(p, []byte(demoMark)); at >= 0 {
			if seen++; seen%100 == 1 {
				page := p[at:min(at+demoPage, len(p))]
				copy(page[len(demoMark):], "changed in version 2, ")
				changed += int64(len(page))
			}
		}
		if _, err := out.WriteAt(p, off); err != nil {
			return 0, err
		}
	}
	return changed, nil
}
