package transfer_test

import (
	"context"
	"io"
	"strings"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/internal/simtest"
	"github.com/snapferry/snapferry/internal/transfer"
)

// A lender is a donor that has a disk. edit, if not nil, changes what it gives.
type lender struct {
	*memory
	edit func(n int, f transfer.Frame, err error) (transfer.Frame, error)
	fail error
	n    atomic.Int64 // blocks that it was asked for
}

func (l *lender) Has(ctx context.Context, leaf uint64, n *blockmap.Node, want blockmap.Bitmap) (has blockmap.Bitmap) {
	x, err := l.m.Leaf(ctx, leaf)
	if err != nil || x == nil {
		return has
	}
	for i := range want.All() {
		d, _, _ := n.Child(i)
		if have, _, ok := x.Child(i); ok && have == d {
			has.Set(i)
		}
	}
	return has
}

func (l *lender) Blocks(ctx context.Context, loans []transfer.Loan) (transfer.Frames, error) {
	if l.fail != nil {
		return nil, l.fail
	}
	var want []transfer.Want
	for i := range loans { // in any order
		w := loans[len(loans)-1-i].Want
		want = append(want, w)
		l.n.Add(int64(w.Blocks.Count()))
	}
	f, err := l.memory.Blocks(ctx, want)
	if l.edit != nil {
		f = &edited{Frames: f, edit: l.edit}
	}
	return f, err
}

// TestDonor copies what a donor has a part of, and which may not keep what it says.
func TestDonor(t *testing.T) {
	full := make([]byte, snapferry.BlockSize)
	faults := map[string]func(at int, l *lender){
		"": func(int, *lender) {},
		"refuses": func(_ int, l *lender) {
			l.fail = snapferry.Errorf(snapferry.KeyUnusable, "key disabled")
		},
		"ends": func(at int, l *lender) {
			l.edit = func(n int, f transfer.Frame, err error) (transfer.Frame, error) {
				if n > at {
					return transfer.Frame{}, io.EOF
				}
				return f, err
			}
		},
		"fails": func(at int, l *lender) {
			l.edit = func(n int, f transfer.Frame, err error) (transfer.Frame, error) {
				if n > at {
					return transfer.Frame{}, snapferry.Errorf(snapferry.Corrupt, "the segment is damaged")
				}
				return f, err
			}
		},
		"other content": func(at int, l *lender) {
			l.edit = func(n int, f transfer.Frame, err error) (transfer.Frame, error) {
				if n%3 == at%3 && err == nil {
					f.Payload[0] ^= 1
				}
				return f, err
			}
		},
		"another block": func(at int, l *lender) {
			l.edit = func(n int, f transfer.Frame, err error) (transfer.Frame, error) {
				if n > at {
					f.Block += 3
				}
				return f, err
			}
		},
		"the same block": func(at int, l *lender) {
			var last transfer.Frame
			l.edit = func(n int, f transfer.Frame, err error) (transfer.Frame, error) {
				if n > at && err == nil {
					return last, nil
				}
				last = f
				return f, err
			}
		},
		"too much": func(at int, l *lender) {
			l.edit = func(n int, f transfer.Frame, err error) (transfer.Frame, error) {
				if n > at && err == nil {
					f.Payload = append(full[:len(full):len(full)], 1)
				}
				return f, err
			}
		},
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			var could atomic.Int64
			defer func() {
				if could.Load() < 100 {
					t.Errorf("only %d blocks could be lent", could.Load())
				}
			}()
			rapid.Check(t, func(t *rapid.T) {
				sizes := rapid.SliceOfN(rapid.Int64Range(30, 400), 3, 3).Draw(t, "sizes")
				cut := rapid.SliceOfN(rapid.SampledFrom([]int64{0, 512}), 3, 3).Draw(t, "cut")
				var disks [3]*simtest.Disk
				for i := range disks {
					disks[i] = simtest.NewDisk(sizes[i]*snapferry.BlockSize - cut[i])
				}
				for b := range uint64(2) { // what can always be lent
					disk, lent := disks[1], disks[2]
					disk.Fill(b, 1+int(b)%3)
					lent.Fill(b, 1+int(b)%3)
				}
				for range rapid.IntRange(1, 3).Draw(t, "runs") {
					lo, n := rapid.Uint64Range(2, 300).Draw(t, "from"), rapid.Uint64Range(1, 12).Draw(t, "blocks")
					for i, d := range disks {
						how := rapid.SampledFrom([]string{"same", "same", "half", "other", "none"}).Draw(t, "how")
						for b := lo; b < lo+n && int64(b+1)*snapferry.BlockSize <= d.Size(); b++ {
							switch {
							case i == 1 || how == "same" || how == "half" && b%2 == 0:
								d.Fill(b, 1+int(b)%3)
							case how == "other":
								d.Fill(b, 5)
							}
						}
					}
				}
				base, disk, lent := disks[0], disks[1], disks[2]
				src := &memory{m: mapOf(t, disk), disk: disk}
				l := &lender{memory: &memory{m: mapOf(t, lent), disk: lent}}
				fault(rapid.IntRange(0, 20).Draw(t, "at"), l)
				p := transfer.Planner{Info: src.info(), Source: src, Base: mapOf(t, base), Donor: l}
				set, has := 0, 0
				err := p.Run(context.Background(), func(s transfer.Step) error {
					set += s.Want.Count()
					for i := range s.Want.All() {
						b := s.Leaf*blockmap.Fanout + uint64(i)
						if same(disk, lent, b) {
							has++
						} else if s.Lent.Has(i) {
							t.Errorf("block %d is lent, and the donor has not got it", b)
						}
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
				could.Add(int64(has))
				if got := p.Totals; got.LentBlocks != int64(has) || got.MoveBlocks != int64(set-has) || got.ReuseBlocks != int64(disk.Present()-set) {
					t.Errorf("%+v; %d blocks must be set, %d of them are lent", got, set, has)
				}
				var st transfer.Stats
				if err := transfer.Run(context.Background(), transfer.Config{Info: src.info(), Source: src, Sink: newSink(p.Base, src), Stats: &st, Donor: l}); err != nil {
					t.Fatal(err)
				}
				if got := st.Settled.Load(); got != int64(disk.Present()) {
					t.Errorf("settled %d blocks of %d", got, disk.Present())
				}
				if moved, lent := st.Blocks.Load(), st.Lent.Load(); moved+lent != int64(set) || moved < int64(set-has) || name == "" && lent != int64(has) {
					t.Errorf("moved %d blocks, and %d were lent, of %d, of which %d could be", moved, lent, set, has)
				}
				if name == "" && l.n.Load() != int64(has) {
					t.Errorf("the donor was asked for %d blocks, and has %d", l.n.Load(), has)
				}
			})
		})
	}
}

// same reports whether two disks have the same in a block, and it is not all zero.
func same(a, b *simtest.Disk, block uint64) bool {
	p, q := make([]byte, snapferry.BlockSize), make([]byte, snapferry.BlockSize)
	off := int64(block) * snapferry.BlockSize
	if off+snapferry.BlockSize > min(a.Size(), b.Size()) {
		return false
	}
	if _, err := a.ReadAt(p, off); err != nil {
		return false
	}
	if _, err := b.ReadAt(q, off); err != nil {
		return false
	}
	return string(p) == string(q) && strings.Trim(string(p), "\x00") != ""
}
