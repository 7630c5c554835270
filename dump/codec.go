package dump

import (
	"encoding/binary"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/digest"
)

// Encode returns the dump as stored. The error is of Kind Invalid for values
// that no dump can have, Full when it is longer than MaxSize.
func (d *Dump) Encode(s Sealer) ([]byte, error) {
	if why := d.check(); why != "" {
		return nil, snapferry.Errorf(snapferry.Invalid, "encode dump %d: %s", d.Number, why)
	}
	w := &writer{}
	w.rows(d)
	if w.bad != "" {
		return nil, snapferry.Errorf(snapferry.Invalid, "encode dump %d: %s", d.Number, w.bad)
	}
	if len(w.p)+headerSize+overhead > MaxSize {
		return nil, snapferry.Errorf(snapferry.Full, "dump %d has %d bytes, more than %d", d.Number, len(w.p)+headerSize+overhead, MaxSize)
	}
	p := append([]byte(magic), version)
	p = binary.BigEndian.AppendUint64(p, d.Number)
	return s.Seal(p, w.p, d.Number), nil
}

// Decode reads a stored dump. The error is of Kind Unsupported for a newer
// version, Corrupt for all else, be it damaged or sealed under another key. The
// dump shares no memory with p.
func Decode(p []byte, s Sealer) (*Dump, error) {
	n, err := Number(p)
	if err != nil {
		return nil, err
	}
	plain, err := s.Open(nil, p[headerSize:], n)
	if err != nil {
		return nil, err
	}
	r := &reader{rest: plain}
	d := r.rows(n)
	if r.bad == "" && len(r.rest) > 0 {
		r.bad = "bytes after the end"
	}
	if r.bad == "" {
		r.bad = d.check()
	}
	if r.bad != "" {
		return nil, corrupt("%s", r.bad)
	}
	return d, nil
}

// Number checks what can be seen of a stored dump without its key, the header,
// and returns its number. Errors are those of Decode.
func Number(p []byte) (uint64, error) {
	switch {
	case len(p) < headerSize+overhead || len(p) > MaxSize:
		return 0, corrupt("%d bytes cannot be a dump", len(p))
	case string(p[:len(magic)]) != magic || p[len(magic)] == 0:
		return 0, corrupt("no magic")
	case p[len(magic)] > version:
		return 0, snapferry.Errorf(snapferry.Unsupported, "decode dump: version %d is newer than this program", p[len(magic)])
	}
	n := binary.BigEndian.Uint64(p[len(magic)+1:])
	if n == 0 {
		return 0, corrupt("the number is zero")
	}
	return n, nil
}

func corrupt(format string, args ...any) error {
	return snapferry.Errorf(snapferry.Corrupt, "decode dump: "+format, args...)
}

// writer appends values and remembers the first that cannot be.
type writer struct {
	p   []byte
	bad string
}

func (w *writer) u8(v uint8)   { w.p = append(w.p, v) }
func (w *writer) u64(v uint64) { w.p = binary.BigEndian.AppendUint64(w.p, v) }
func (w *writer) count(n int)  { w.p = binary.BigEndian.AppendUint32(w.p, uint32(n)) }

func (w *writer) id(v [16]byte) { w.p = append(w.p, v[:]...) }

func (w *writer) bytes(v []byte) {
	if len(v) > MaxText {
		w.bad = "a value is too long"
		return
	}
	w.p = binary.BigEndian.AppendUint16(w.p, uint16(len(v)))
	w.p = append(w.p, v...)
}

func (w *writer) text(s string) {
	if !isText(s) {
		w.bad = "a text is too long or not UTF-8"
		return
	}
	w.bytes([]byte(s))
}

func (w *writer) time(t time.Time) {
	switch {
	case !isTime(t):
		w.bad = "a time out of range"
	case t.IsZero():
		w.u64(0)
	default:
		w.u64(uint64(t.UnixMilli()))
	}
}

func (w *writer) rows(d *Dump) {
	r := &d.Region
	w.text(string(r.Name))
	w.text(r.ID)
	w.u64(r.Incarnation)
	w.bytes(r.SignKey)
	w.bytes(r.LookupKey)
	w.count(len(r.Trusted))
	for _, k := range r.Trusted {
		w.bytes(k)
	}
	w.time(r.Created)
	w.count(len(d.Accounts))
	for _, a := range d.Accounts {
		w.text(string(a.ID))
		w.text(a.Name)
		w.text(a.TokenHash)
		w.time(a.Created)
	}
	w.count(len(d.Chains))
	for _, c := range d.Chains {
		w.id(c.ID)
		w.text(string(c.Account))
		w.u8(uint8(c.Algorithm))
		w.bytes(c.WrappedKey)
		w.text(string(c.OriginRegion))
		w.id(c.OriginChain)
		w.time(c.Created)
	}
	w.count(len(d.Volumes))
	for _, v := range d.Volumes {
		w.text(string(v.ID))
		w.text(string(v.Account))
		w.text(v.Name)
		w.id(v.Chain)
		w.text(string(v.OriginRegion))
		w.text(string(v.OriginVolume))
		w.time(v.Created)
	}
	w.count(len(d.Audit))
	for _, a := range d.Audit {
		w.time(a.At)
		w.text(string(a.Account))
		w.text(a.Action)
		w.text(a.Subject)
		w.text(a.Detail)
	}
}

// reader takes values off its rest. It remembers the first thing wrong; what it
// returns after that is zero.
type reader struct {
	rest []byte
	bad  string
}

func (r *reader) take(n int) []byte {
	if r.bad == "" && len(r.rest) < n {
		r.bad = "cut off"
	}
	if r.bad != "" {
		return make([]byte, min(n, 16))
	}
	p := r.rest[:n]
	r.rest = r.rest[n:]
	return p
}

func (r *reader) u8() uint8   { return r.take(1)[0] }
func (r *reader) u64() uint64 { return binary.BigEndian.Uint64(r.take(8)) }

// count reads the number of rows of which each takes at least size bytes.
func (r *reader) count(size int) int {
	n := binary.BigEndian.Uint32(r.take(4))
	if r.bad == "" && int64(n)*int64(size) > int64(len(r.rest)) {
		r.bad = "more rows than bytes"
	}
	if r.bad != "" {
		return 0
	}
	return int(n)
}

func (r *reader) id() [16]byte { return [16]byte(r.take(16)) }

func (r *reader) bytes() []byte {
	n := int(binary.BigEndian.Uint16(r.take(2)))
	if r.bad != "" || n == 0 {
		return nil
	}
	return append([]byte(nil), r.take(n)...)
}

func (r *reader) text() string {
	s := string(r.bytes())
	if !isText(s) {
		r.bad = "a text is not UTF-8"
	}
	return s
}

func (r *reader) time() time.Time {
	ms := r.u64()
	if ms > maxTime {
		r.bad = "a time out of range"
	}
	if ms == 0 || r.bad != "" {
		return time.Time{}
	}
	return time.UnixMilli(int64(ms)).UTC()
}

// The least sizes of rows in bytes.
const (
	minKey     = 2
	minAccount = 3*2 + 8
	minChain   = 16 + 2 + 1 + 2 + 2 + 16 + 8
	minVolume  = 3*2 + 16 + 2*2 + 8
	minAudit   = 8 + 4*2
)

func (r *reader) rows(number uint64) *Dump {
	d := &Dump{Number: number}
	d.Region = Region{
		Name: snapferry.RegionName(r.text()), ID: r.text(), Incarnation: r.u64(), SignKey: r.bytes(), LookupKey: r.bytes(),
	}
	for range r.count(minKey) {
		d.Region.Trusted = append(d.Region.Trusted, r.bytes())
	}
	d.Region.Created = r.time()
	for range r.count(minAccount) {
		var a Account
		a.ID, a.Name, a.TokenHash, a.Created = snapferry.AccountID(r.text()), r.text(), r.text(), r.time()
		d.Accounts = append(d.Accounts, a)
	}
	for range r.count(minChain) {
		d.Chains = append(d.Chains, Chain{
			ID: r.id(), Account: snapferry.AccountID(r.text()), Algorithm: digest.Algorithm(r.u8()), WrappedKey: r.bytes(),
			OriginRegion: snapferry.RegionName(r.text()), OriginChain: r.id(), Created: r.time(),
		})
	}
	for range r.count(minVolume) {
		d.Volumes = append(d.Volumes, Volume{
			ID: snapferry.VolumeID(r.text()), Account: snapferry.AccountID(r.text()), Name: r.text(), Chain: r.id(),
			OriginRegion: snapferry.RegionName(r.text()), OriginVolume: snapferry.VolumeID(r.text()), Created: r.time(),
		})
	}
	for range r.count(minAudit) {
		d.Audit = append(d.Audit, Audit{
			At: r.time(), Account: snapferry.AccountID(r.text()), Action: r.text(), Subject: r.text(), Detail: r.text(),
		})
	}
	return d
}
