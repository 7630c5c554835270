package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
	"github.com/snapferry/snapferry/internal/source"
	"github.com/snapferry/snapferry/nbd"
)

// envelope is what testdata/envelope.py has opened.
type envelope struct {
	keys          map[string][]byte // by chain
	blocks, pages map[int64]string  // SHA-256 of their content, in hexadecimal
}

// openEnvelope opens what a region, which does not run, has on its disk.
func openEnvelope(t *testing.T, dir string) envelope {
	t.Helper()
	python := ""
	for _, p := range []string{"python3", "/usr/bin/python3"} {
		if exec.CommandContext(t.Context(), p, "-c", "import cryptography").Run() == nil {
			python = p
			break
		}
	}
	switch {
	case python == "" && os.Getenv("CI") != "":
		t.Fatal("no python3 has the package cryptography (Debian: python3-cryptography)")
	case python == "":
		t.Skip("no python3 has the package cryptography (Debian: python3-cryptography)")
	}
	e := envelope{keys: map[string][]byte{}, blocks: map[int64]string{}, pages: map[int64]string{}}
	for line := range strings.Lines(output(t, python, "testdata/envelope.py", dir)) {
		f := strings.Fields(line)
		if f[0] == "key" {
			k, err := hex.DecodeString(f[2])
			if err != nil {
				t.Fatal(err)
			}
			e.keys[f[1]] = k
			continue
		}
		n, err := strconv.ParseInt(f[2], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		map[string]map[int64]string{"block": e.blocks, "page": e.pages}[f[0]][n] = f[3]
	}
	return e
}

// encrypted is a region with an encrypted snapshot of a disk, and an encrypted volume
// that was written like it.
func encryptedRegion(t *testing.T, k *killed) (disk []byte) {
	t.Helper()
	k.start(demoEast)
	path := random(t, 3<<20+12<<10)
	disk, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := source.OpenRead(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c := k.client(demoEast)
	s, err := c.Import(t.Context(), client.ImportRequest{Volume: "disk", Sealing: client.Sealing{Encrypt: true}}, f)
	if err != nil {
		t.Fatal(err)
	}
	if s, err = c.Wait(t.Context(), s.ID, nil); err != nil || s.State != snapferry.SnapshotReady || !s.Encrypted {
		t.Fatalf("got %+v, %v", s, err)
	}
	all, err := c.CreateVolumes(t.Context(), client.VolumeRequest{Size: int64(len(disk)), Name: "live", Sealing: client.Sealing{Encrypt: true}})
	if err != nil {
		t.Fatal(err)
	}
	v, err := c.ExportVolume(t.Context(), all[0].ID, client.VolumeExportRequest{})
	if err != nil {
		t.Fatal(err)
	}
	n, err := nbd.Dial(t.Context(), v.Export.URI, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	for off := 0; off < len(disk); off += 256 << 10 {
		if _, err := n.WriteAt(disk[off:min(off+256<<10, len(disk))], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Sync(); err != nil {
		t.Fatal(err)
	}
	return disk
}

// TestEnvelope has another program, in another language, written by the documents
// of the formats, open what a region has written: segments of snapshots, and layers of
// volumes.
func TestEnvelope(t *testing.T) {
	t.Parallel()
	k := prepareKilled(t, "none", demoEast)
	disk := encryptedRegion(t, k)
	k.run[demoEast].end()
	e := openEnvelope(t, k.dev.configs[demoEast].Directory)
	for what, x := range map[string]struct {
		got  map[int64]string
		size int
	}{"blocks": {e.blocks, snapferry.BlockSize}, "pages": {e.pages, 4096}} {
		if want := (len(disk) + x.size - 1) / x.size; len(x.got) != want {
			t.Errorf("%d %s were opened, want %d", len(x.got), what, want)
		}
		for n, sum := range x.got {
			p := make([]byte, x.size)
			copy(p, disk[int(n)*x.size:])
			if want := sha256.Sum256(p); sum != hex.EncodeToString(want[:]) && !(what == "blocks" && int(n+1)*x.size > len(disk)) {
				t.Errorf("%s: number %d has other content", what, n)
			}
		}
	}
}

// TestDataKeysLeaveMemory looks through all memory of a region for the data keys of
// its chains: they are there while they are used, and gone some time after.
func TestDataKeysLeaveMemory(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/proc/self/mem"); err != nil {
		t.Skip("this system does not show the memory of processes")
	}
	k := prepareKilled(t, "none", demoEast)
	c := k.dev.configs[demoEast]
	ttl := 3 * time.Second
	c.Keys.TTL = &ttl
	if err := writeYAML(k.dev.configFile(demoEast), c); err != nil {
		t.Fatal(err)
	}
	encryptedRegion(t, k)
	pid := k.run[demoEast].cmd.Process.Pid
	used := filepath.Join(t.TempDir(), "used")
	copyMemory(t, pid, used)
	idle := filepath.Join(t.TempDir(), "idle")
	time.Sleep(ttl + 3*time.Second)
	copyMemory(t, pid, idle)
	k.run[demoEast].end()
	e := openEnvelope(t, c.Directory)
	if len(e.keys) != 2 {
		t.Fatalf("got %d data keys", len(e.keys))
	}
	found := 0
	for chain, key := range e.keys {
		found += count(t, used, key)
		if n := count(t, idle, key); n > 0 {
			t.Errorf("the data key of chain %s is in memory %d times, %v after its last use", chain, n, ttl+3*time.Second)
		}
	}
	if found == 0 {
		t.Error("no data key is in memory while it is used: this search finds nothing")
	}
}

// copyMemory writes all memory of a process that it can write to itself to a file.
func copyMemory(t *testing.T, pid int, to string) {
	t.Helper()
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer maps.Close()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Skip("the memory of another process cannot be read: ", err)
	}
	defer mem.Close()
	out, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	total := int64(0)
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, end int64
		var rights string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &end, &rights); err != nil || !strings.HasPrefix(rights, "rw") {
			continue
		}
		for ; from < end; from += 1 << 20 {
			p := make([]byte, min(1<<20, end-from))
			n, _ := mem.ReadAt(p, from) // what cannot be read is not there
			if n > 0 && len(bytes.Trim(p[:n], "\x00")) > 0 {
				if _, err := out.Write(p[:n]); err != nil {
					t.Fatal(err)
				}
			}
			total += int64(n)
		}
	}
	if total == 0 {
		t.Fatal("no memory could be read")
	}
}

func count(t *testing.T, path string, key []byte) int {
	t.Helper()
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(p, key)
}

// TestMarkerIsNowhere writes a pattern to a volume of a region, takes a snapshot,
// copies that under other keys in the same region and into another one, and makes
// volumes there, which are read and written. Of encrypted volumes the pattern stands in
// no file of the regions: not in buckets, metadata, layers, caches or logs. Of plain
// ones it does.
func TestMarkerIsNowhere(t *testing.T) {
	t.Parallel()
	for what, seal := range map[string]client.Sealing{"plain": {}, "encrypted": {Encrypt: true}} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			k := prepareKilled(t, "none", demoEast, demoWest)
			marker := []byte("a pattern that must not be found " + what)
			page := bytes.Repeat(marker, 4096/len(marker)+1)[:4096]
			content := bytes.Repeat(page, 1<<20/len(page))
			k.start(demoEast)
			k.start(demoWest)
			east, west := k.client(demoEast), k.client(demoWest)
			at := map[snapferry.RegionName]*client.Client{demoEast: east, demoWest: west}
			for _, c := range at {
				if _, err := c.CreateKey(t.Context(), client.KeyRequest{Alias: "other"}); err != nil {
					t.Fatal(err)
				}
			}
			live := func(c *client.Client, req client.VolumeRequest, fn func(n *nbd.Client)) snapferry.VolumeID {
				t.Helper()
				all, err := c.CreateVolumes(t.Context(), req)
				if err != nil {
					t.Fatal(err)
				}
				v, err := c.ExportVolume(t.Context(), all[0].ID, client.VolumeExportRequest{})
				if err != nil {
					t.Fatal(err)
				}
				n, err := nbd.Dial(t.Context(), v.Export.URI, nil)
				if err != nil {
					t.Fatal(err)
				}
				defer n.Close()
				fn(n)
				if err := n.Sync(); err != nil {
					t.Fatal(err)
				}
				return v.ID
			}
			write := func(n *nbd.Client, p []byte, off int64) {
				if _, err := n.WriteAt(p, off); err != nil {
					t.Error(err)
				}
			}
			first := live(east, client.VolumeRequest{Size: 4 << 20, Name: "first", Sealing: seal}, func(n *nbd.Client) {
				write(n, content, 1<<20)
				write(n, page[:700], 3<<20+100)
			})
			snaps, err := east.SnapshotVolumes(t.Context(), client.SnapshotRequest{Volumes: []snapferry.VolumeID{first}})
			if err != nil {
				t.Fatal(err)
			}
			ready := func(c *client.Client, id snapferry.SnapshotID) {
				t.Helper()
				s, err := c.Wait(t.Context(), id, nil)
				if err != nil || s.State != snapferry.SnapshotReady || s.Encrypted != seal.Encrypt {
					t.Fatalf("got %s %s, encrypted %v, %v", s.State, s.Reason, s.Encrypted, err)
				}
			}
			ready(east, snaps[0].ID)
			other := client.Sealing{}
			if seal.Encrypt {
				other.Key = "other"
			}
			for _, c := range []*client.Client{east, west} {
				if c == east && !seal.Encrypt {
					continue // it would be the same
				}
				s, err := c.Copy(t.Context(), client.CopyRequest{From: demoEast, Source: snaps[0].ID, Sealing: other})
				if err != nil {
					t.Fatal(err)
				}
				ready(c, s.ID)
				live(c, client.VolumeRequest{Snapshot: s.ID, Name: "second"}, func(n *nbd.Client) {
					p := make([]byte, len(content))
					if _, err := n.ReadAt(p, 1<<20); err != nil || !bytes.Equal(p, content) {
						t.Errorf("read: other content, or %v", err)
					}
					write(n, page, 0)
				})
			}
			k.run[demoEast].end()
			k.run[demoWest].end()
			var found []string
			err = filepath.WalkDir(k.dev.dir, func(path string, d fs.DirEntry, err error) error {
				if err != nil || !d.Type().IsRegular() {
					return err
				}
				p, err := os.ReadFile(path)
				if bytes.Contains(p, marker) {
					found = append(found, path)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case seal.Encrypt && len(found) > 0:
				t.Errorf("the pattern is in %q", found)
			case !seal.Encrypt && len(found) < 5: // two buckets, two layers, what is near in west
				t.Errorf("the pattern is in %q only: this search finds nothing", found)
			}
		})
	}
}
