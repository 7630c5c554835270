package meta

import (
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/snapferry/snapferry/digest"
)

// A scanner is a row that is being read.
type scanner interface{ Scan(dst ...any) error }

// A badColumn says that a stored value has not the form it was written in.
type badColumn struct{ err error }

func (e *badColumn) Error() string { return "bad value in metadata: " + e.err.Error() }

var (
	_ sql.Scanner = hexColumn{}
	_ sql.Scanner = timeColumn{}
	_ sql.Scanner = jsonColumn{}
	_ sql.Scanner = textColumn{}
)

// hexColumn reads a 128-bit id; NULL and the empty text are the zero id.
type hexColumn struct{ id []byte }

func (c hexColumn) Scan(src any) error {
	clear(c.id)
	switch s := src.(type) {
	case nil:
		return nil
	case string:
		if s == "" {
			return nil
		}
		if len(s) == 2*len(c.id) {
			_, err := hex.Decode(c.id, []byte(s))
			if err != nil {
				return &badColumn{err}
			}
			return nil
		}
	}
	return &badColumn{fmt.Errorf("%.40v is not an id", src)}
}

// hexText is the text of an id; "" for the zero id.
func hexText(id [16]byte) string {
	if id == [16]byte{} {
		return ""
	}
	return hex.EncodeToString(id[:])
}

// hexOrNull is the text of an id, NULL for the zero id.
func hexOrNull(id [16]byte) any {
	if id == [16]byte{} {
		return nil
	}
	return hex.EncodeToString(id[:])
}

// textColumn reads text that may be NULL.
type textColumn struct{ s *string }

func (c textColumn) Scan(src any) error {
	switch s := src.(type) {
	case nil:
		*c.s = ""
		return nil
	case string:
		*c.s = s
		return nil
	}
	return &badColumn{fmt.Errorf("%.40v is not text", src)}
}

func textOrNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}

var errDigest = errors.New("a digest of another length")

// digestBytes is a digest as it is stored; nil for the zero digest.
func digestBytes(d digest.Digest) []byte {
	if d.IsZero() {
		return nil
	}
	return d[:]
}

func digestOrNull(d digest.Digest) any {
	if d.IsZero() {
		return nil
	}
	return d[:]
}

func blobOrNull(p []byte) any {
	if len(p) == 0 {
		return nil
	}
	return p
}

// timeColumn reads milliseconds since 1970; 0 is the zero time.
type timeColumn struct{ t *time.Time }

func (c timeColumn) Scan(src any) error {
	ms, ok := src.(int64)
	if !ok {
		return &badColumn{fmt.Errorf("%.40v is not a time", src)}
	}
	*c.t = time.Time{}
	if ms != 0 {
		*c.t = time.UnixMilli(ms).UTC()
	}
	return nil
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// jsonColumn reads JSON into what v points at; the empty text leaves it alone.
type jsonColumn struct{ v any }

func (c jsonColumn) Scan(src any) error {
	s, ok := src.(string)
	if !ok {
		return &badColumn{fmt.Errorf("%.40v is not text", src)}
	}
	if s == "" {
		return nil
	}
	if err := json.Unmarshal([]byte(s), c.v); err != nil {
		return &badColumn{err}
	}
	return nil
}

// jsonText is the JSON of v, a value of ours that always has one.
func jsonText(v any) string {
	p, err := json.Marshal(v)
	if err != nil {
		return "" // only floats that are not numbers and unsupported types fail; our rows have neither
	}
	return string(p)
}

func truth(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
