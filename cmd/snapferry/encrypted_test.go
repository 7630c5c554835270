package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"flag"
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

// encryptedRegion starts a region with an encrypted snapshot of a disk, and an encrypted volume
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

// gcore has TestDataKeysLeaveMemory look into cores that gdb takes. What the region keeps
// out of cores is not in them, also while it is used.
var gcore = flag.Bool("gcore", false, "TestDataKeysLeaveMemory takes cores with gcore, of gdb, instead of reading memory")

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
	t.Logf("%d copies of data keys while they were used, none %v after their last use", found, ttl+3*time.Second)
	if found == 0 && !*gcore {
		t.Error("no data key is in memory while it is used: this search finds nothing")
	}
}

// copyMemory writes all memory of a process that it can write to itself to a file.
func copyMemory(t *testing.T, pid int, to string) {
	t.Helper()
	if *gcore {
		output(t, "gcore", "-o", to, strconv.Itoa(pid))
		if err := os.Rename(fmt.Sprintf("%s.%d", to, pid), to); err != nil {
			t.Fatal(err)
		}
		return
	}
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

// TestWrongRegionKey starts a region with an encrypted snapshot when its key is gone,
// unreadable, or another one, and when its keyring was damaged, removed or put back to
// an older one: it does not start without its key, says what to do, and changes
// nothing; a keyring it writes again.
func TestWrongRegionKey(t *testing.T) {
	t.Parallel()
	k := prepareKilled(t, "none", demoEast)
	disk := encryptedRegion(t, k)
	dir := k.dev.configs[demoEast].Directory
	ring := filepath.Join(dir, "bucket", "keyring")
	older := keyrings(t, ring)
	if _, err := k.client(demoEast).CreateKey(t.Context(), client.KeyRequest{Alias: "later"}); err != nil {
		t.Fatal(err)
	}
	k.run[demoEast].end()
	newer := keyrings(t, ring)
	if len(older) != 1 || len(newer) != 1 {
		t.Fatalf("got keyrings %d and %d", len(older), len(newer))
	}
	put := func(files map[string][]byte) {
		t.Helper()
		for path := range keyrings(t, ring) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
		for path, p := range files {
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, p, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	file := filepath.Join(dir, regionKeyFile)
	key, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		key  []byte // nil: none
		want snapferry.Kind
		hint string
	}{
		"no key":      {nil, snapferry.NotFound, "bring " + file + " back"},
		"no key file": {[]byte("what is this"), snapferry.Corrupt, "bring the key back"},
		"half a key":  {key[:40], snapferry.Corrupt, "bring the key back"},
		"another key": {bytes.Repeat([]byte("5a"), 32), snapferry.Corrupt, "key"},
	} {
		if err := os.Remove(file); err != nil && c.key != nil {
			t.Fatal(err)
		}
		if c.key != nil {
			if err := os.WriteFile(file, c.key, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		all, err := k.app.startAll(t.Context(), k.dev, []snapferry.RegionName{demoEast})
		if err == nil {
			endAll(all)
		}
		if !snapferry.IsKind(err, c.want) || !strings.Contains(snapferry.HintOf(err), c.hint) {
			t.Errorf("%s: got %v (%s), want %s and a hint with %q", what, err, snapferry.HintOf(err), c.want, c.hint)
		}
		now := keyrings(t, ring)
		for path, p := range newer {
			if len(now) != 1 || !bytes.Equal(now[path], p) {
				t.Errorf("%s: the keyring has changed", what)
			}
		}
		if err := os.WriteFile(file, key, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	damaged := map[string][]byte{}
	for path, p := range newer {
		p = bytes.Clone(p)
		p[len(p)/2] ^= 1
		damaged[path] = p
	}
	for what, files := range map[string]map[string][]byte{"a damaged keyring": damaged, "no keyring": nil, "an older keyring": older} {
		put(files)
		k.start(demoEast)
		c := k.client(demoEast)
		if _, err := c.Key(t.Context(), "later"); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		var all []snapferry.Snapshot
		err := c.Snapshots(t.Context(), client.Filter{}, func(x snapferry.Snapshot) error { all = append(all, x); return nil })
		if err != nil || len(all) != 1 {
			t.Fatalf("%s: got %d snapshots, %v", what, len(all), err)
		}
		out, err := os.Create(filepath.Join(t.TempDir(), "out"))
		if err != nil {
			t.Fatal(err)
		}
		if err := out.Truncate(all[0].Size); err != nil {
			t.Fatal(err)
		}
		if err := c.Export(t.Context(), all[0].ID, out, nil); err != nil {
			t.Errorf("%s: export: %v", what, err)
		}
		out.Close()
		if got, err := os.ReadFile(out.Name()); err != nil || !bytes.Equal(got, disk) {
			t.Errorf("%s: the export has other content, or %v", what, err)
		}
		k.run[demoEast].end()
		if now := keyrings(t, ring); len(now) != 1 {
			t.Errorf("%s: there are %d keyrings after a start", what, len(now))
		}
	}
}

// keyrings are the keyrings of a bucket.
func keyrings(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			all[path], err = os.ReadFile(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestPassphrase derives the key of a region from the environment, and takes it from a
// credential.
func TestPassphrase(t *testing.T) {
	c := serverConfig{KeyPassphraseEnv: "A_PASSPHRASE"}
	t.Setenv("A_PASSPHRASE", "short")
	_, err := c.regionKey("one")
	if !snapferry.IsKind(err, snapferry.Invalid) || snapferry.HintOf(err) == "" {
		t.Errorf("a short passphrase: got %v", err)
	}
	keys := map[string]bool{}
	for _, phrase := range []string{"a long enough passphrase", "another one that is as long"} {
		t.Setenv("A_PASSPHRASE", phrase)
		for _, id := range []string{"one", "two"} {
			key, err := c.regionKey(id)
			if err != nil || len(key) != 32 {
				t.Fatalf("got %d bytes, %v", len(key), err)
			}
			keys[hex.EncodeToString(key)] = true
		}
	}
	if len(keys) != 4 {
		t.Errorf("two passphrases of two regions make %d keys", len(keys))
	}
	// By Python: hashlib.pbkdf2_hmac("sha256", phrase, b"snapferry region key 1\0one", 1000000).
	if want := "6d7844b172d23e88f0b7b1463e5f335d0e355cca29b77079c21a5fe288374a69"; !keys[want] {
		t.Errorf("got %v, want one to be %s", keys, want)
	}
	c = serverConfig{KeyCredential: "region"}
	t.Setenv(credentialsDirectory, "")
	if _, err := c.regionKey("one"); !snapferry.IsKind(err, snapferry.Invalid) || snapferry.HintOf(err) == "" {
		t.Errorf("without credentials: got %v", err)
	}
	dir := t.TempDir()
	t.Setenv(credentialsDirectory, dir)
	if _, err := c.regionKey("one"); !snapferry.IsKind(err, snapferry.NotFound) {
		t.Errorf("without this credential: got %v", err)
	}
	want := bytes.Repeat([]byte{7}, 32)
	if err := os.WriteFile(filepath.Join(dir, "region"), []byte(hex.EncodeToString(want)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := c.regionKey("one"); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %x, %v", got, err)
	}
	for _, bad := range []serverConfig{{KeyCredential: "../x"}, {KeyCredential: "a", KeyFile: "b"}, {KeyPassphraseEnv: "A", KeyFile: "b"}} {
		if err := bad.checkKeySource(); !snapferry.IsKind(err, snapferry.Invalid) {
			t.Errorf("%+v: got %v, want Invalid", bad, err)
		}
	}
}
