package limit

import (
	"time"

	"github.com/snapferry/snapferry"
)

const (
	day = 24 * time.Hour
	// MaxRate is the highest rate, in bytes per second, that a plan may have.
	MaxRate    = 1 << 40
	minRate    = 1 << 10
	maxWindows = 16
)

// A Plan is a rate by the time of day. The zero Plan is no limit.
type Plan struct {
	Rate    int64    `json:"rate"` // bytes per second outside of the windows; 0: no limit
	Windows []Window `json:"windows,omitempty"`
}

// A Window is a part of each day with another rate. It ends on the next day when To
// is not after From.
type Window struct {
	From Clock `json:"from"`
	To   Clock `json:"to"`   // not in the window any more
	Rate int64 `json:"rate"` // bytes per second; 0: no limit
}

// Clock is a time of day, in minutes since midnight, written like 22:30.
type Clock int

// ParseClock reads a time of day.
func ParseClock(s string) (Clock, error) {
	t, err := time.Parse("15:04", s)
	if err != nil {
		return 0, snapferry.Errorf(snapferry.Invalid, "%q is not a time of day", s).WithHint("write it like 22:30")
	}
	return Clock(60*t.Hour() + t.Minute()), nil
}

func (c Clock) String() string {
	return time.Date(0, 1, 1, int(c)/60, int(c)%60, 0, 0, time.UTC).Format("15:04")
}

// MarshalText implements encoding.TextMarshaler.
func (c Clock) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (c *Clock) UnmarshalText(p []byte) (err error) {
	*c, err = ParseClock(string(p))
	return err
}

// CheckRate reports, as Invalid, a rate that no limit can have.
func CheckRate(bytes int64) error {
	if bytes != 0 && (bytes < minRate || bytes > MaxRate) {
		return snapferry.Errorf(snapferry.Invalid, "a rate of %d bytes a second is not within %d and %d", bytes, minRate, int64(MaxRate)).WithHint("0 is no limit")
	}
	return nil
}

// Check reports, as Invalid, rates out of range, and windows that are empty, too
// many, or overlap.
func (p Plan) Check() error {
	if err := CheckRate(p.Rate); err != nil {
		return err
	}
	if len(p.Windows) > maxWindows {
		return snapferry.Errorf(snapferry.Invalid, "%d windows are more than the limit of %d", len(p.Windows), maxWindows)
	}
	var taken [24 * 60]bool
	for _, w := range p.Windows {
		if err := CheckRate(w.Rate); err != nil {
			return err
		}
		if w.From == w.To {
			return snapferry.Errorf(snapferry.Invalid, "the window from %s to %s is empty", w.From, w.To)
		}
		for m := w.From; m != w.To; m = (m + 1) % Clock(len(taken)) {
			if taken[m] {
				return snapferry.Errorf(snapferry.Invalid, "two windows have %s", m)
			}
			taken[m] = true
		}
	}
	return nil
}

// at returns the rate at a time of day.
func (p Plan) at(c Clock) int64 {
	for _, w := range p.Windows {
		in := w.From <= c && c < w.To
		if w.To <= w.From {
			in = c >= w.From || c < w.To
		}
		if in {
			return w.Rate
		}
	}
	return p.Rate
}

// At returns the rate at a time, by the clock of its location, and until when it
// may be taken to last: the next edge of a window, or a day.
func (p Plan) At(t time.Time) (bytes int64, until time.Time) {
	now := Clock(60*t.Hour() + t.Minute())
	next := Clock(day / time.Minute)
	for _, w := range p.Windows {
		for _, edge := range []Clock{w.From, w.To} {
			next = min(next, (edge-now-1+Clock(day/time.Minute))%Clock(day/time.Minute)+1)
		}
	}
	return p.at(now), t.Truncate(time.Minute).Add(time.Duration(next) * time.Minute)
}

// Unlimited is what Bytes and Time take for the bytes that no limit lets pass.
const Unlimited = int64(1) << 62

// Bytes returns how many bytes may pass from one time to another; Unlimited when
// there is no limit at some time between them.
func (p Plan) Bytes(from, to time.Time) int64 {
	var sum float64
	for from.Before(to) {
		r, until := p.At(from)
		if r == 0 {
			return Unlimited
		}
		if until.After(to) {
			until = to
		}
		sum += float64(r) * until.Sub(from).Seconds()
		from = until
	}
	return int64(min(sum, float64(Unlimited)))
}

// End returns when so many bytes will have passed that begin at a time. It looks
// not further than a year.
func (p Plan) End(from time.Time, bytes int64) time.Time {
	left := float64(bytes)
	for last := from.Add(365 * day); left > 0 && from.Before(last); {
		r, until := p.At(from)
		pass := float64(r) * until.Sub(from).Seconds()
		switch {
		case r == 0:
			return from
		case pass >= left:
			return from.Add(time.Duration(left / float64(r) * float64(time.Second)))
		}
		left -= pass
		from = until
	}
	return from
}
