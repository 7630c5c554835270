// Package blobtest tests what stores objects: RunConformance is the suite that
// every driver passes, Faulty a driver that fails when it is told to, Slow one
// that waits and counts.
package blobtest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/blob"
)

// RunConformance proves that a driver keeps the contract of blob.Driver but
// for durability. open returns a driver without objects; it is closed at the
// end of the test it was opened for, if it can be.
func RunConformance(t *testing.T, open func(t *testing.T) blob.Driver) {
	runConformance(t, open, true)
}

// RunTreeConformance is RunConformance for a store of files in directories, in
// which no object's name can be the beginning of another's, up to a slash. The
// names of the program are never so.
func RunTreeConformance(t *testing.T, open func(t *testing.T) blob.Driver) {
	runConformance(t, open, false)
}

func runConformance(t *testing.T, open func(t *testing.T) blob.Driver, flat bool) {
	for _, c := range []struct {
		name string
		test func(*testing.T, blob.Driver)
	}{
		{"PutAndRead", testPutAndRead},
		{"RangedReads", testRangedReads},
		{"BigBodies", testBigBodies},
		{"BodyStaysTheCallers", testBody},
		{"NotFound", func(t *testing.T, d blob.Driver) { testNotFound(t, d, flat) }},
		{"CreateIfAbsent", testCreateIfAbsent},
		{"CreateRace", testCreateRace},
		{"Delete", testDelete},
		{"Names", func(t *testing.T, d blob.Driver) { testNames(t, d, flat) }},
		{"List", func(t *testing.T, d blob.Driver) { testList(t, d, flat) }},
		{"ListPages", testListPages},
		{"ListRandom", func(t *testing.T, d blob.Driver) { testListRandom(t, d, flat) }},
		{"ListEnds", testListEnds},
		{"ListWhileChanging", testListWhileChanging},
		{"Cancelled", testCancelled},
		{"Concurrent", testConcurrent},
		{"Check", testCheck},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := open(t)
			t.Cleanup(func() {
				if err := closeDriver(d); err != nil {
					t.Errorf("close: %v", err)
				}
			})
			c.test(t, d)
		})
	}
}

func testPutAndRead(t *testing.T, d blob.Driver) {
	for i, n := range []int{0, 1, 4095, 4096, 4097, 100_000} {
		name := fmt.Sprintf("objects/%02d", i)
		body := Bytes(uint64(i), n)
		noError(t, d.Put(t.Context(), name, body))
		wantObject(t, d, name, body)
	}
}

func testRangedReads(t *testing.T, d blob.Driver) {
	ctx := t.Context()
	body := Bytes(1, 10_000)
	noError(t, d.Put(ctx, "objects/ab12", body))
	for _, r := range []struct{ off, n, want int }{
		{0, 10_000, 10_000},
		{0, 1, 1},
		{9_999, 1, 1},
		{4_095, 2, 2},
		{5_000, 5_000, 5_000},
		{5_000, 5_001, 5_000},
		{9_999, 100, 1},
		{10_000, 1, 0},
		{20_000, 10, 0},
		{3, 0, 0},
	} {
		p := bytes.Repeat([]byte{0xee}, r.n)
		n, err := d.ReadAt(ctx, "objects/ab12", p, int64(r.off))
		if n != r.want || err != nil && !(n < r.n && errors.Is(err, io.EOF)) {
			t.Errorf("read %d bytes at %d: got %d, %v, want %d", r.n, r.off, n, err, r.want)
			continue
		}
		if n > 0 && !bytes.Equal(p[:n], body[r.off:r.off+n]) {
			t.Errorf("read %d bytes at %d: got other bytes than were put", r.n, r.off)
		}
	}
}

func testBigBodies(t *testing.T, d blob.Driver) {
	const mib = 1 << 20
	big := blob.AlignedBuffer(17*mib + 4096)
	fill(2, big)
	for i, body := range [][]byte{
		big[:mib-1], big[:mib], big[:mib+1], big[:2*mib+4095], big[:8*mib], big[:8*mib+4096], big[:17*mib+77],
		big[1 : mib+1], big[512 : 9*mib], big[8 : 9*mib+8],
	} {
		name := fmt.Sprintf("objects/big%d", i)
		noError(t, d.Put(t.Context(), name, body))
		wantObject(t, d, name, body)
		noError(t, d.Delete(t.Context(), name))
	}
}

// testBody proves that a body is neither kept nor changed.
func testBody(t *testing.T, d blob.Driver) {
	body := blob.AlignedBuffer(1<<20 + 9)
	fill(3, body)
	was := bytes.Clone(body)
	noError(t, d.Put(t.Context(), "a", body))
	if !bytes.Equal(body, was) {
		t.Fatal("the driver changed the body")
	}
	clear(body)
	wantObject(t, d, "a", was)
}

func testNotFound(t *testing.T, d blob.Driver, flat bool) {
	ctx := t.Context()
	noError(t, d.Put(ctx, "objects/ab12", nil))
	for _, name := range []string{"objects/ab13", "objects/ab1", "objects", "a", "ab12", "objects/ab12/x"} {
		if !flat && collides(name, []string{"objects/ab12"}) {
			continue
		}
		_, err := d.ReadAt(ctx, name, make([]byte, 1), 0)
		wantKind(t, "read "+name, err, snapferry.NotFound)
		_, err = d.Size(ctx, name)
		wantKind(t, "size of "+name, err, snapferry.NotFound)
		noError(t, d.Delete(ctx, name))
	}
	wantObject(t, d, "objects/ab12", nil)
}

func testCreateIfAbsent(t *testing.T, d blob.Driver) {
	ctx := t.Context()
	body := []byte("first")
	noError(t, d.Put(ctx, "objects/ab12", body))
	wantKind(t, "put other bytes", d.Put(ctx, "objects/ab12", []byte("second, longer")), snapferry.Exists)
	wantKind(t, "put the same bytes", d.Put(ctx, "objects/ab12", body), snapferry.Exists)
	wantKind(t, "put much", d.Put(ctx, "objects/ab12", blob.AlignedBuffer(2<<20)), snapferry.Exists)
	wantObject(t, d, "objects/ab12", body)
	wantNames(t, d, "", "", "objects/ab12")
}

func testCreateRace(t *testing.T, d blob.Driver) {
	const rounds, racers = 20, 8
	for r := range rounds {
		name := fmt.Sprintf("race/%02d", r)
		size := 10 + r%2*(1<<20)
		var wins atomic.Int32
		var won atomic.Uint64
		parallel(racers, func(i int) {
			err := d.Put(t.Context(), name, Bytes(uint64(i), size))
			if err == nil {
				wins.Add(1)
				won.Store(uint64(i))
				return
			}
			wantKind(t, "put "+name, err, snapferry.Exists)
			if _, err := d.Size(t.Context(), name); err != nil {
				t.Errorf("put says exists, size of says %v", err)
			}
		})
		if got := wins.Load(); got != 1 {
			t.Fatalf("round %d: %d of %d made one object, want 1", r, got, racers)
		}
		wantObject(t, d, name, Bytes(won.Load(), size))
	}
}

func testDelete(t *testing.T, d blob.Driver) {
	ctx := t.Context()
	for i := range 5 {
		body := Bytes(uint64(i), 1000)
		noError(t, d.Put(ctx, "objects/ab12", body))
		noError(t, d.Put(ctx, fmt.Sprintf("objects/ab/%d", i), nil))
		wantObject(t, d, "objects/ab12", body)
		noError(t, d.Delete(ctx, "objects/ab12"))
		_, err := d.ReadAt(ctx, "objects/ab12", make([]byte, 1), 0)
		wantKind(t, "read what was deleted", err, snapferry.NotFound)
		noError(t, d.Delete(ctx, "objects/ab12"))
		noError(t, d.Delete(ctx, fmt.Sprintf("objects/ab/%d", i)))
		wantNames(t, d, "", "")
	}
}

// oddNames are pairs that an unlucky layout of files would take for one.
func oddNames() []string {
	return []string{
		"a", "a/a", "a/a/a", "a/a-", "a-", "a-/a", "a.b", "aa", "aa/aa", "aa/aaa", "aa/aa/aaa", "aaa", "aaa/b", "ab/ab/ab", "ab/abc", "abc",
		"abc/ab/abc", "abc-", "abc.d/e", "tmp", "tmp/1", "tmp/tm", "tmp/tmp", "lock", "objects/ab12", "objects/ab/ab12/foo", "objects/ab12/foo",
		"_/-", "-", "0", strings.Repeat("x", blob.MaxName), strings.Repeat("y/", blob.MaxName/2-1) + "y",
	}
}

// collides reports whether a store of files cannot have an object of a name
// beside those of others.
func collides(name string, others []string) bool {
	return slices.ContainsFunc(others, func(o string) bool {
		return strings.HasPrefix(name, o+"/") || strings.HasPrefix(o, name+"/")
	})
}

func testNames(t *testing.T, d blob.Driver, flat bool) {
	ctx := t.Context()
	names := oddNames()
	if !flat {
		var some []string
		for _, name := range names {
			if !collides(name, some) {
				some = append(some, name)
			}
		}
		names = some
	}
	for _, name := range names {
		if err := blob.CheckName(name); err != nil {
			t.Fatal(err)
		}
		noError(t, d.Put(ctx, name, []byte(name)))
	}
	for _, name := range names {
		wantObject(t, d, name, []byte(name))
	}
	slices.Sort(names)
	wantNames(t, d, "", "", names...)
	for i, name := range names {
		noError(t, d.Delete(ctx, name))
		wantNames(t, d, "", "", names[i+1:]...)
	}
	noError(t, d.Put(ctx, "tmp/again", nil))
}

func testList(t *testing.T, d blob.Driver, flat bool) {
	ctx := t.Context()
	for i, name := range []string{"objects/ab12", "objects/ab13", "objects/cd", "object", "versions/1/1", "versions/1/2", "versions/10/1", "versions/1-/1"} {
		noError(t, d.Put(ctx, name, make([]byte, i)))
	}
	wantNames(t, d, "objects", "", "objects/ab12", "objects/ab13", "objects/cd")
	if flat {
		noError(t, d.Put(ctx, "objects", nil))
		wantNames(t, d, "objects", "", "objects", "objects/ab12", "objects/ab13", "objects/cd")
	}
	wantNames(t, d, "objects/", "", "objects/ab12", "objects/ab13", "objects/cd")
	wantNames(t, d, "objects/ab", "objects/ab12", "objects/ab13")
	wantNames(t, d, "objects/ab1", "objects/ab", "objects/ab12", "objects/ab13")
	wantNames(t, d, "", "objects/ab13x", "objects/cd", "versions/1-/1", "versions/1/1", "versions/1/2", "versions/10/1")
	wantNames(t, d, "versions/1/", "", "versions/1/1", "versions/1/2")
	wantNames(t, d, "versions/1", "versions/1/1", "versions/1/2", "versions/10/1")
	wantNames(t, d, "versions/1/", "versions/1/2")
	wantNames(t, d, "objects/", "zzz")
	wantNames(t, d, "none/", "")
	wantNames(t, d, "objects/cd/", "")
	noError(t, d.List(ctx, "objects/ab13", "", func(i blob.Info) error {
		if diff := gocmp.Diff(blob.Info{Name: "objects/ab13", Size: 1}, i); diff != "" {
			t.Errorf("info differs (-want +got):\n%s", diff)
		}
		return nil
	}))
}

func testListPages(t *testing.T, d blob.Driver) {
	var want []string
	for i := range 300 {
		name := fmt.Sprintf("objects/%04x", i*200)
		want = append(want, name)
		noError(t, d.Put(t.Context(), name, nil))
	}
	enough := errors.New("enough")
	var got []string
	for after, pages := "", 0; ; pages++ {
		n := 0
		err := d.List(t.Context(), "objects/", after, func(i blob.Info) error {
			got, after = append(got, i.Name), i.Name
			if n++; n == 7 {
				return enough
			}
			return nil
		})
		if err == nil {
			break
		}
		if !errors.Is(err, enough) || pages > len(want) {
			t.Fatalf("list after %q: %v on page %d", after, err, pages)
		}
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("names differ (-want +got):\n%s", diff)
	}
}

// testListRandom compares lists with those of a sorted slice.
func testListRandom(t *testing.T, d blob.Driver, flat bool) {
	r := rand.New(rand.NewPCG(1, 2))
	random := func() string {
		b := make([]byte, 1+r.IntN(7))
		for i := range b {
			b[i] = "ab-.0/"[r.IntN(6)]
		}
		return string(b)
	}
	var names []string
	for len(names) < 200 {
		name := random()
		if blob.CheckName(name) == nil && !slices.Contains(names, name) && (flat || !collides(name, names)) {
			noError(t, d.Put(t.Context(), name, nil))
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for range 300 {
		prefix, after := random(), random()
		prefix = prefix[:r.IntN(min(4, len(prefix)+1))]
		if r.IntN(2) == 0 {
			after = names[r.IntN(len(names))]
		}
		var want []string
		for _, name := range names {
			if strings.HasPrefix(name, prefix) && name > after {
				want = append(want, name)
			}
		}
		wantNames(t, d, prefix, after, want...)
	}
}

func testListEnds(t *testing.T, d blob.Driver) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for i := range 20 {
		noError(t, d.Put(ctx, fmt.Sprintf("%02d/x", i), nil))
	}
	stop := errors.New("stop")
	calls := 0
	err := d.List(ctx, "", "", func(blob.Info) error { calls++; return stop })
	if !errors.Is(err, stop) || calls != 1 {
		t.Errorf("list with an fn that fails: got %v after %d calls, want %v after 1", err, calls, stop)
	}
	err = d.List(ctx, "", "", func(blob.Info) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("list when ctx ends: got %v, want %v", err, context.Canceled)
	}
}

// testListWhileChanging lets fn use the driver, and others change it.
func testListWhileChanging(t *testing.T, d blob.Driver) {
	ctx := t.Context()
	stays := map[string]bool{}
	for i := range 100 {
		name := fmt.Sprintf("objects/%02d", i)
		stays[name] = i%2 == 0
		noError(t, d.Put(ctx, name, []byte("x")))
	}
	seen := map[string]bool{}
	last := ""
	noError(t, d.List(ctx, "objects/", "", func(i blob.Info) error {
		if i.Name <= last {
			t.Errorf("%s is listed after %s", i.Name, last)
		}
		last = i.Name
		seen[i.Name] = true
		if !stays[i.Name] {
			noError(t, d.Delete(ctx, i.Name))
		}
		if _, err := d.Size(ctx, last); stays[last] && err != nil {
			t.Errorf("size of what is listed: %v", err)
		}
		return d.Put(ctx, "other/"+strings.TrimPrefix(i.Name, "objects/"), nil)
	}))
	for name := range stays {
		if !seen[name] {
			t.Errorf("%s was there all the time and is not listed", name)
		}
	}
	noError(t, d.List(ctx, "objects/", "", func(i blob.Info) error {
		if !stays[i.Name] {
			t.Errorf("%s is deleted and listed", i.Name)
		}
		return nil
	}))
}

func testCancelled(t *testing.T, d blob.Driver) {
	noError(t, d.Put(t.Context(), "there", []byte("x")))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, readErr := d.ReadAt(ctx, "there", make([]byte, 1), 0)
	_, sizeErr := d.Size(ctx, "there")
	for op, err := range map[Op]error{
		Put: d.Put(ctx, "new", nil), ReadAt: readErr, Size: sizeErr, Delete: d.Delete(ctx, "there"),
		List: d.List(ctx, "", "", func(blob.Info) error { return nil }),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s with a context that ended: got %v, want %v", op, err, context.Canceled)
		}
	}
}

// testConcurrent lets many make, read, list and delete objects of their own.
func testConcurrent(t *testing.T, d blob.Driver) {
	ctx := t.Context()
	common := Bytes(99, 5000)
	noError(t, d.Put(ctx, "objects/common", common))
	parallel(8, func(w int) {
		for i := range 25 {
			name := fmt.Sprintf("objects/%02x%02x", i, w)
			body := Bytes(uint64(w*1000+i), 1+i*300)
			noError(t, d.Put(ctx, name, body))
			wantObject(t, d, name, body)
			wantObject(t, d, "objects/common", common)
			wantNames(t, d, name, "", name)
			if i%2 == 0 {
				noError(t, d.Delete(ctx, name))
				wantNames(t, d, name, "")
				_, err := d.ReadAt(ctx, name, make([]byte, 1), 0)
				wantKind(t, "read "+name, err, snapferry.NotFound)
			}
		}
	})
	n := 0
	noError(t, d.List(ctx, "", "", func(blob.Info) error { n++; return nil }))
	if want := 8*12 + 1; n != want {
		t.Errorf("%d objects are left, want %d", n, want)
	}
}

// testCheck proves that the driver passes the check that every bucket has to.
func testCheck(t *testing.T, d blob.Driver) {
	proofs, err := blob.New(d).Check(t.Context())
	noError(t, err)
	var got []string
	for _, p := range proofs {
		got = append(got, p.Property)
	}
	want := []string{blob.ReadAfterWrite, blob.CreateIfAbsent, blob.ListAfterWrite, blob.DeleteAtOnce}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("proofs differ (-want +got):\n%s", diff)
	}
	wantNames(t, d, "", "")
}

func parallel(n int, fn func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { fn(i) })
	}
	wg.Wait()
}

// Bytes returns n bytes that depend on seed alone.
func Bytes(seed uint64, n int) []byte {
	p := make([]byte, n)
	fill(seed, p)
	return p
}

// fill repeats random bytes, with the place of each repetition in it.
func fill(seed uint64, p []byte) {
	var key [32]byte
	binary.BigEndian.PutUint64(key[:], seed)
	page := make([]byte, min(len(p), 4096))
	rand.NewChaCha8(key).Read(page)
	for off := 0; off < len(p); off += len(page) {
		if len(page) >= 8 {
			binary.BigEndian.PutUint64(page, uint64(off))
		}
		copy(p[off:], page)
	}
}

func noError(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Errorf("unexpected error: %v", err)
	}
}

func wantKind(tb testing.TB, doing string, err error, want snapferry.Kind) {
	tb.Helper()
	if !snapferry.IsKind(err, want) {
		tb.Errorf("%s: got error %v, want one of kind %s", doing, err, want)
	}
}

func wantObject(tb testing.TB, d blob.Driver, name string, want []byte) {
	tb.Helper()
	size, err := d.Size(tb.Context(), name)
	if err != nil || size != int64(len(want)) {
		tb.Errorf("size of %s: got %d, %v, want %d", name, size, err, len(want))
		return
	}
	got := make([]byte, size)
	n, err := d.ReadAt(tb.Context(), name, got, 0)
	if n != len(got) || err != nil && err != io.EOF {
		tb.Errorf("read %s: got %d bytes, %v, want %d", name, n, err, len(got))
		return
	}
	if !bytes.Equal(got, want) {
		tb.Errorf("read %s: got other bytes than were put", name)
	}
}

func wantNames(tb testing.TB, d blob.Driver, prefix, after string, want ...string) {
	tb.Helper()
	var got []string
	err := d.List(tb.Context(), prefix, after, func(i blob.Info) error {
		got = append(got, i.Name)
		return nil
	})
	noError(tb, err)
	if !slices.IsSortedFunc(got, cmp.Compare[string]) {
		tb.Errorf("list %q after %q: the names are not in order", prefix, after)
	}
	if diff := gocmp.Diff(want, got); diff != "" && len(want)+len(got) > 0 {
		tb.Errorf("list %q after %q differs (-want +got):\n%s", prefix, after, diff)
	}
}
