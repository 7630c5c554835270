package extent_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/snapferry/snapferry/extent"
)

const universe = 300

// TestModel holds a Set against a plain array of bools.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var set extent.Set
		var model [universe]bool
		draw := func(t *rapid.T) extent.Extent {
			return extent.Extent{
				Off: rapid.Int64Range(-20, universe).Draw(t, "off"),
				Len: rapid.Int64Range(-5, 60).Draw(t, "len"),
			}
		}
		mark := func(e extent.Extent, v bool) {
			for i := max(e.Off, 0); i < min(e.End(), universe); i++ {
				model[i] = v
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				e := draw(t)
				e.Len = min(e.Len, universe-e.Off)
				set.Add(e)
				mark(e, true)
			},
			"remove": func(t *rapid.T) {
				e := draw(t)
				set.Remove(e)
				mark(e, false)
			},
			"binary": func(t *rapid.T) {
				p, err := set.AppendBinary(nil)
				if err != nil {
					t.Fatal(err)
				}
				var other extent.Set
				if err := other.UnmarshalBinary(p); err != nil {
					t.Fatalf("read back %x: %v", p, err)
				}
				if diff := cmp.Diff(all(&other), all(&set)); diff != "" {
					t.Fatalf("read back (-got +want):\n%s", diff)
				}
				set = other
			},
			"": func(t *rapid.T) {
				for i, want := range model {
					if got := set.Contains(int64(i)); got != want {
						t.Fatalf("Contains(%d): got %v, want %v in %v", i, got, want, all(&set))
					}
				}
				want := runs(model[:])
				if diff := cmp.Diff(all(&set), want); diff != "" {
					t.Fatalf("extents (-got +want):\n%s", diff)
				}
				if got := set.Count(); got != len(want) {
					t.Errorf("Count: got %d, want %d", got, len(want))
				}
				if got, want := set.Total(), int64(count(model[:])); got != want {
					t.Errorf("Total: got %d, want %d", got, want)
				}
			},
		})
	})
}

func all(s *extent.Set) []extent.Extent { return slices.Collect(s.All()) }

func runs(model []bool) (es []extent.Extent) {
	for i, in := range model {
		switch {
		case in && i > 0 && model[i-1]:
			es[len(es)-1].Len++
		case in:
			es = append(es, extent.Extent{Off: int64(i), Len: 1})
		}
	}
	return es
}

func count(model []bool) (n int) {
	for _, in := range model {
		if in {
			n++
		}
	}
	return n
}

func TestEdges(t *testing.T) {
	var s extent.Set
	s.Add(extent.Extent{Off: math.MaxInt64 - 1, Len: 10})
	s.Add(extent.Extent{Off: math.MinInt64, Len: 5})
	s.Add(extent.Extent{Off: math.MaxInt64, Len: 1})
	s.Add(extent.Extent{Off: 7, Len: math.MinInt64})
	if diff := cmp.Diff(all(&s), []extent.Extent{{Off: math.MaxInt64 - 1, Len: 1}}); diff != "" {
		t.Errorf("at the upper edge (-got +want):\n%s", diff)
	}
	if s.Contains(math.MaxInt64) || !s.Contains(math.MaxInt64-1) || s.Contains(-1) || s.Contains(math.MinInt64) {
		t.Error("Contains is wrong at an edge")
	}
	s.Add(extent.Extent{Off: -5, Len: math.MaxInt64})
	s.Add(extent.Extent{Off: math.MaxInt64 - 10, Len: 10})
	if got := s.Total(); got != math.MaxInt64 {
		t.Errorf("Total of everything: got %d, want %d", got, int64(math.MaxInt64))
	}
	s.Remove(extent.Extent{Off: math.MinInt64, Len: math.MaxInt64})
	if got := s.Total(); got != math.MaxInt64 {
		t.Errorf("after removing negative numbers: got %d, want %d", got, int64(math.MaxInt64))
	}
	s.Remove(extent.Extent{Off: 0, Len: math.MaxInt64})
	if got := s.Count(); got != 0 {
		t.Errorf("after removing everything: got %d extents, want 0", got)
	}
}

func TestAllStops(t *testing.T) {
	var s extent.Set
	s.Add(extent.Extent{Off: 0, Len: 1})
	s.Add(extent.Extent{Off: 2, Len: 1})
	n := 0
	for range s.All() {
		n++
		break
	}
	if n != 1 {
		t.Errorf("got %d extents before the break, want 1", n)
	}
}

func TestExtentJSON(t *testing.T) {
	e := extent.Extent{Off: 4096, Len: 512}
	p, err := json.Marshal(e)
	if err != nil || string(p) != `{"offset":4096,"length":512}` {
		t.Errorf("got %s, %v", p, err)
	}
	var back extent.Extent
	if err := json.Unmarshal(p, &back); err != nil || back != e {
		t.Errorf("read back: got %v, %v, want %v", back, err, e)
	}
}

// TestAddInOrderDoesNotAllocate: a checkpoint adds leaf after leaf.
func TestAddInOrderDoesNotAllocate(t *testing.T) {
	var s extent.Set
	s.Add(extent.Extent{Off: 0, Len: 1})
	next := int64(1)
	if got := testing.AllocsPerRun(100, func() {
		s.Add(extent.Extent{Off: next, Len: 1})
		next++
	}); got != 0 {
		t.Errorf("got %v allocations for each Add, want 0", got)
	}
}

// golden is a set and its binary form, fixed.
func golden() (extent.Set, []byte) {
	var s extent.Set
	s.Add(extent.Extent{Off: 0, Len: 3})
	s.Add(extent.Extent{Off: 4, Len: 200})
	s.Add(extent.Extent{Off: 1 << 32, Len: 1})
	return s, []byte{1, 0, 3, 1, 0xc8, 0x01, 0xb4, 0xfe, 0xff, 0xff, 0x0f, 1}
}

func TestGolden(t *testing.T) {
	s, want := golden()
	if got, _ := s.AppendBinary(nil); !bytes.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
	if got, _ := s.AppendBinary([]byte("abc")); !bytes.Equal(got, append([]byte("abc"), want...)) {
		t.Errorf("appended: got %x", got)
	}
	var empty extent.Set
	if got, _ := empty.AppendBinary(nil); !bytes.Equal(got, []byte{1}) {
		t.Errorf("empty set: got %x, want 01", got)
	}
}

func TestMalformed(t *testing.T) {
	_, good := golden()
	top := binary.AppendUvarint(nil, math.MaxInt64)
	for _, c := range []struct {
		name string
		p    []byte
		want error
	}{
		{"nothing", nil, extent.ErrMalformed},
		{"version 0", []byte{0}, extent.ErrMalformed},
		{"version 2", []byte{2}, extent.ErrVersion},
		{"gap without length", []byte{1, 5}, extent.ErrMalformed},
		{"truncated", good[:len(good)-1], extent.ErrMalformed},
		{"trailing byte", append(slices.Clone(good), 1), extent.ErrMalformed},
		{"length 0", []byte{1, 5, 0}, extent.ErrMalformed},
		{"touching extents", []byte{1, 5, 1, 0, 1}, extent.ErrMalformed},
		{"long varint for a gap", []byte{1, 0x85, 0, 1}, extent.ErrMalformed},
		{"long varint for a length", []byte{1, 5, 0x81, 0x80, 0}, extent.ErrMalformed},
		{"unfinished varint", []byte{1, 5, 0x81}, extent.ErrMalformed},
		{"varint above 64 bits", append([]byte{1}, bytes.Repeat([]byte{0xff}, 11)...), extent.ErrMalformed},
		{"gap above the top", append([]byte{1}, binary.AppendUvarint(nil, 1<<63)...), extent.ErrMalformed},
		{"end above the top", append(append([]byte{1}, top...), 1), extent.ErrMalformed},
		{"length above the top", append([]byte{1, 1}, top...), extent.ErrMalformed},
	} {
		s, _ := golden()
		before := all(&s)
		if err := s.UnmarshalBinary(c.p); !errors.Is(err, c.want) {
			t.Errorf("%s: got error %v, want %v", c.name, err, c.want)
		}
		if diff := cmp.Diff(all(&s), before); diff != "" {
			t.Errorf("%s changed the set (-got +want):\n%s", c.name, diff)
		}
	}
}

func FuzzUnmarshalBinary(f *testing.F) {
	_, good := golden()
	f.Add(good)
	f.Add([]byte{1})
	f.Add([]byte{1, 5, 1, 0, 1})
	f.Add([]byte{2, 1, 1})
	f.Fuzz(func(t *testing.T, p []byte) {
		var s extent.Set
		if err := s.UnmarshalBinary(p); err != nil {
			if !errors.Is(err, extent.ErrMalformed) && !errors.Is(err, extent.ErrVersion) {
				t.Errorf("an error of no known sort: %v", err)
			}
			return
		}
		if got, _ := s.AppendBinary(nil); !bytes.Equal(got, p) {
			t.Errorf("written again: got %x, want %x", got, p)
		}
		end := int64(-1)
		for e := range s.All() {
			if e.Off <= end || e.Len <= 0 || e.End() != e.Off+e.Len {
				t.Errorf("extent %v after one that ends at %d", e, end)
			}
			end = e.End()
		}
	})
}

func TestRun(t *testing.T) {
	var s extent.Set
	s.Add(extent.Extent{Off: 10, Len: 5})
	s.Add(extent.Extent{Off: 20, Len: 1})
	for _, tt := range []struct {
		off, n, length int64
		in             bool
	}{
		{0, 100, 10, false},
		{0, 5, 5, false},
		{9, 1, 1, false},
		{10, 100, 5, true},
		{12, 2, 2, true},
		{14, 9, 1, true},
		{15, 100, 5, false},
		{20, 2, 1, true},
		{21, 7, 7, false},
	} {
		if length, in := s.Run(tt.off, tt.n); length != tt.length || in != tt.in {
			t.Errorf("%d bytes from %d: got %d %v, want %d %v", tt.n, tt.off, length, in, tt.length, tt.in)
		}
	}
	if length, in := new(extent.Set).Run(3, 4); length != 4 || in {
		t.Errorf("an empty set: got %d %v", length, in)
	}
}
