package transfer

import (
	"time"

	"github.com/snapferry/snapferry"
)

const (
	// patience is how long nothing may come of a stream while others go on, or
	// went on until now; it doubles each time that the same blocks are given up on.
	patience = 3 * time.Second
	// longPatience is how many times longer it is when nothing comes of any.
	longPatience = 10
	// slowTicks is the time, in ticks, over which streams are compared, and
	// slowRatio how many times slower than the others one may be.
	slowTicks = 8
	slowRatio = 16
)

// stalled gives up on streams that stand still.
func (p *pace) stalled(now time.Time) {
	// A frame of each in so much time, if all get the same of the rate. Where
	// nothing comes at all it grows, and only the long patience is left.
	usual := float64(snapferry.BlockSize*len(p.flights)) / max(p.rate, 1)
	for f := range p.flights {
		quiet := now.Sub(f.last)
		if f.cancel == nil || f.held {
			continue
		}
		if quiet > f.patience && quiet.Seconds() > 8*usual || quiet > longPatience*f.patience {
			f.cancel(snapferry.Errorf(snapferry.Unavailable, "nothing came of a stream for %s", quiet.Round(time.Second)))
		}
	}
}

// compare gives up on streams that are much slower than others were.
func (p *pace) compare() {
	span := (slowTicks * paceTick).Seconds()
	for f := range p.flights {
		rate := float64(f.bytes) / span
		// One that was given up already keeps its time.
		if f.old && f.cancel != nil && f.patience == patience && rate > 0 && rate*slowRatio < p.typical && float64(f.left) > rate*span {
			f.cancel(snapferry.Errorf(snapferry.Unavailable, "a stream fell behind the others"))
		}
		f.bytes, f.old = 0, f.cancel != nil && !f.held
	}
}

// ended notes the rate of a stream that came to its end.
func (p *pace) ended(f *flight, now time.Time) {
	if d := now.Sub(f.began).Seconds(); d > 0 && f.cancel != nil {
		rate := float64(f.total) / d
		if p.typical == 0 {
			p.typical = rate
		}
		p.typical += (rate - p.typical) / 8
	}
}
