package layer

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// span returns a random run of pages of a container, short, long or all of it.
func span(r *rand.Rand) (page, n int) {
	page = r.IntN(pagesPerMap)
	switch r.IntN(8) {
	case 0:
		return 0, pagesPerMap
	case 1:
		n = 1 + r.IntN(pagesPerMap)
	case 2, 3:
		n = 1 + r.IntN(300)
	default:
		n = 1 + r.IntN(4)
	}
	return page, min(n, pagesPerMap-page)
}

// TestContainer holds containers of all forms against an array.
func TestContainer(t *testing.T) {
	forms := map[string]int{}
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 5))
		var c *container
		var model [pagesPerMap]State
		for step := range 100 {
			page, n := span(r)
			s := State(r.IntN(int(numStates)))
			if seed%2 == 0 {
				n = min(n, 3) // many arrays
			}
			before := counts(&model)
			for i := page; i < page+n; i++ {
				model[i] = s
			}
			if c != nil && c.bitmap != nil {
				c.frozen = r.IntN(2) == 0
			}
			old, oldPage := c, make([]byte, mapPage)
			c.encode(oldPage)
			frozen := c != nil && (c.frozen || c.bitmap == nil)
			next, change := c.with(page, n, s)
			if frozen {
				again := make([]byte, mapPage)
				if old.encode(again); !bytes.Equal(again, oldPage) {
					t.Fatalf("seed %d step %d: what a Sync reads has changed", seed, step)
				}
			}
			c = next
			after := counts(&model)
			for i := range change {
				if got, want := change[i], after[i]-before[i]; got != want {
					t.Fatalf("seed %d step %d: %v more by %d, want %d", seed, step, State(i), got, want)
				}
			}
			forms[form(c)]++
			checkContainer(t, c, &model)
			p := make([]byte, mapPage)
			c.encode(p)
			back, ok := decode(p)
			if !ok {
				t.Fatalf("seed %d step %d: what was encoded is malformed", seed, step)
			}
			checkContainer(t, back, &model)
			if r.IntN(4) == 0 {
				c = back
			}
			if t.Failed() {
				t.Fatalf("seed %d step %d: %d pages from %d became %v", seed, step, n, page, s)
			}
		}
	}
	for _, f := range []string{"nil", "uniform", "bitmap", "array"} {
		if forms[f] == 0 {
			t.Errorf("no container was in the form %s", f)
		}
	}
}

func form(c *container) string {
	switch {
	case c == nil:
		return "nil"
	case c.uniform != Below:
		return "uniform"
	case c.bitmap != nil:
		return "bitmap"
	}
	return "array"
}

func counts(model *[pagesPerMap]State) (n [numStates]int) {
	for _, s := range model {
		n[s]++
	}
	return n
}

func checkContainer(t *testing.T, c *container, model *[pagesPerMap]State) {
	t.Helper()
	if got, want := c.counts(), counts(model); got != want {
		t.Errorf("%s counts: got %v, want %v", form(c), got, want)
	}
	for page := 0; page < pagesPerMap; {
		n := 1
		for page+n < pagesPerMap && model[page+n] == model[page] {
			n++
		}
		for _, skip := range []int{0, n / 2, n - 1} {
			if s, k := c.run(page + skip); s != model[page] || k != n-skip {
				t.Errorf("%s run at %d: got %v of %d, want %v of %d", form(c), page+skip, s, k, model[page], n-skip)
				return
			}
			if s := c.look(page + skip); s != model[page] {
				t.Errorf("%s look at %d: got %v, want %v", form(c), page+skip, s, model[page])
				return
			}
		}
		page += n
	}
	for s := Data; s < numStates; s++ {
		want := -1
		for i, m := range model {
			if m == s {
				want = i
			}
		}
		if got := c.last(s); got != want {
			t.Errorf("%s last %v: got %d, want %d", form(c), s, got, want)
		}
	}
}

// TestNames proves that only names that a layer gives are names of its files.
func TestNames(t *testing.T) {
	for name, want := range map[string]int{"data.000": 0, "map.007": 7, "map.255": 255, "data.256": -1, "map.7": -1, "map.0007": -1, "data.-01": -1, "dat.001": -1, "map": -1, "": -1, "map.001.tmp": -1} {
		kind, n, ok := parseName(name)
		if ok != (want >= 0) || ok && (n != want || fileName(kind, n) != name) {
			t.Errorf("%q: got %q %d %v, want %d", name, kind, n, ok, want)
		}
	}
}

// FuzzDecode reads any page of a map file: it is refused if a page has state 3,
// else it is what was read.
func FuzzDecode(f *testing.F) {
	f.Add([]byte{}, uint16(0))
	f.Add([]byte{0x55, 0xaa}, uint16(7))
	f.Add([]byte{0x03}, uint16(100))
	f.Add(bytes.Repeat([]byte{0x55}, mapPage), uint16(0))
	f.Add(bytes.Repeat([]byte{0x99}, 1000), uint16(3000))
	f.Fuzz(func(t *testing.T, part []byte, at uint16) {
		p := make([]byte, mapPage)
		copy(p[int(at)%mapPage:], part)
		c, ok := decode(p)
		want := true
		for i := range pagesPerMap {
			s := State(p[i/4] >> (i % 4 * 2) & 3)
			want = want && s < numStates
			if ok && c.look(i) != s {
				t.Fatalf("page %d: got %v, want %v", i, c.look(i), s)
			}
		}
		if ok != want {
			t.Fatalf("got accepted %v, want %v", ok, want)
		}
		if ok {
			q := make([]byte, mapPage)
			if c.encode(q); !bytes.Equal(p, q) {
				t.Error("written back it is another page")
			}
		}
	})
}
