package vault

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/snapferry/snapferry/internal/meta"
)

// smalls are n small objects of a size, newest first.
func smalls(n int, size int64) (all []meta.Object) {
	for i := range n {
		all = append(all, meta.Object{Name: fmt.Sprintf("s%04d", n-i), Size: size, Created: time.Unix(int64(n-i), 0)})
	}
	return all
}

// planOf is plan of what is settled: those called m… were merged before, the
// versions of all others live.
func planOf(t *testing.T, hollows, small []meta.Object) []meta.Object {
	t.Helper()
	old, err := settled(small, func(name string) (bool, error) { return name[0] != 'm', nil })
	if err != nil {
		t.Fatal(err)
	}
	return plan(hollows, old)
}

// TestSettled wants only the newest left alone whose versions live.
func TestSettled(t *testing.T) {
	small := smalls(newestSmall+3, 1000)
	for _, c := range []struct {
		lives bool
		want  int
	}{{true, 3}, {false, newestSmall + 3}} {
		old, err := settled(small, func(string) (bool, error) { return c.lives, nil })
		if err != nil || len(old) != c.want {
			t.Errorf("versions live: %v: got %d, %v, want %d", c.lives, len(old), err, c.want)
		}
	}
}

func TestPlan(t *testing.T) {
	half := meta.Object{Name: "half", Size: 100, Dead: 50, Created: time.Unix(5, 0)}
	full := meta.Object{Name: "full", Size: 100, Dead: 24, Created: time.Unix(1, 0)}
	quarter := meta.Object{Name: "quarter", Size: 100, Dead: 25, Created: time.Unix(2, 0)}
	merged := meta.Object{Name: "merged", Size: 7 << 20, Created: time.Unix(0, 0)}
	for _, c := range []struct {
		name           string
		hollows, small []meta.Object
		want           int
		first          string
	}{
		{name: "nothing"},
		{name: "hollow ones, oldest first", hollows: []meta.Object{half, quarter}, want: 2, first: "quarter"},
		{name: "healthy ones are left alone", hollows: []meta.Object{full}},
		{name: "few small ones", small: smalls(newestSmall+tooManySmall, 1000)},
		{name: "many small ones", small: smalls(newestSmall+tooManySmall+2, 1000), want: tooManySmall + 2, first: "s0001"},
		{name: "small and hollow is one victim", hollows: []meta.Object{half}, small: append(smalls(newestSmall, 10), half), want: 1, first: "half"},
		{
			name:  "a merged one waits until the others are as large",
			small: append(smalls(newestSmall+100, 10<<10), merged), want: 100, first: "s0001",
		},
		{
			name:  "a merged one goes along with others as large",
			small: append(smalls(newestSmall+100, 80<<10), merged), want: 101, first: "merged",
		},
	} {
		got := planOf(t, c.hollows, c.small)
		if len(got) != c.want {
			t.Errorf("%s: got %d victims, want %d", c.name, len(got), c.want)
		} else if c.want > 0 && got[0].Name != c.first {
			t.Errorf("%s: got %s first, want %s", c.name, got[0].Name, c.first)
		}
	}
}

// TestPlanConverges adds objects for ever and merges what plan says: the number
// of small ones stays bounded, and so does how often a byte is written again.
func TestPlanConverges(t *testing.T) {
	for _, size := range []int64{3 << 10, 80 << 10, 1 << 20, 7 << 20} {
		rng := rand.New(rand.NewPCG(1, uint64(size)))
		var small []meta.Object // newest first
		var added, written int64
		most := 0
		for i := range 5000 {
			o := meta.Object{Name: fmt.Sprint(i), Size: size/2 + rng.Int64N(size), Created: time.Unix(int64(i), 0)}
			o.Size = min(o.Size, smallObject-1)
			added += o.Size
			small = append([]meta.Object{o}, small...)
			victims := planOf(t, nil, small)
			if len(victims) == 0 {
				most = max(most, len(small))
				continue
			}
			gone := map[string]bool{}
			sum := int64(0)
			for _, v := range victims {
				gone[v.Name] = true
				sum += v.Size
			}
			written += sum
			var left []meta.Object
			out := meta.Object{Name: fmt.Sprint("m", i), Size: sum, Created: victims[len(victims)-1].Created}
			for _, s := range small {
				if sum < smallObject && !out.Created.IsZero() && s.Created.Before(out.Created) {
					left = append(left, out)
					sum = smallObject
				}
				if !gone[s.Name] {
					left = append(left, s)
				}
			}
			if sum < smallObject {
				left = append(left, out)
			}
			small = left
			if again := planOf(t, nil, small); len(again) > 0 {
				t.Fatalf("objects of %d bytes: right after a merge another %d are to be merged", size, len(again))
			}
		}
		t.Logf("objects of about %d bytes: at most %d small ones, %.2f bytes written again for each", size, most, float64(written)/float64(added))
		if most > newestSmall+tooManySmall+16 {
			t.Errorf("objects of about %d bytes: got %d small ones", size, most)
		}
		if amp := float64(written) / float64(added); amp > 8 {
			t.Errorf("objects of about %d bytes: each byte is written again %.1f times", size, amp)
		}
	}
}

func TestLeast(t *testing.T) {
	all := []meta.Object{{Name: "a", Size: 32, Dead: 8}, {Name: "b", Size: 32, Dead: 20}, {Name: "c", Size: 4}, {Name: "d", Size: 32, Dead: 20}}
	for _, c := range []struct {
		room int64
		want string
	}{{100, "b"}, {13, "b"}, {12, ""}, {0, ""}} {
		got := ""
		for _, o := range least(slices.Clone(all), c.room) {
			got += o.Name
		}
		if got != c.want {
			t.Errorf("with room for less than %d: got %q, want %q", c.room, got, c.want)
		}
	}
}

func TestMergeShare(t *testing.T) {
	for _, c := range []struct{ n, want int64 }{{0, 0}, {1 << 20, 1 << 20}, {32 << 20, 32 << 20}, {33 << 20, 33 << 19}, {96 << 20, 32 << 20}} {
		if diff := cmp.Diff(c.want, mergeShare([]meta.Object{{Size: c.n + 7, Dead: 7}})); diff != "" {
			t.Errorf("%d bytes: -want +got\n%s", c.n, diff)
		}
	}
}
