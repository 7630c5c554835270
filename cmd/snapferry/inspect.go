package main

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/record"
	"github.com/snapferry/snapferry/segment"
)

const recordMagic = "SFREC"

func (a *app) inspectCommand() *cobra.Command {
	var key string
	cmd := &cobra.Command{
		Use: "inspect OBJECT", Short: "Show what is in a file of a bucket, and verify its checksums", Args: cobra.ExactArgs(1),
		Long: `Show what is in a file of a bucket: an object with its segments and their frames,
or a version record. No region and no key is needed; the checksums of an object
are verified. The signature of a record is verified when --key gives the
region's public key, which the region logs when it starts.`,
		RunE: func(_ *cobra.Command, args []string) error {
			public, err := hex.DecodeString(key)
			if err != nil || key != "" && len(public) != ed25519.PublicKeySize {
				return snapferry.Errorf(snapferry.Invalid, "--key is not %d bytes in hexadecimal", ed25519.PublicKeySize)
			}
			return a.inspect(args[0], public)
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "public key of the region, in hexadecimal, to verify a record's signature with")
	return cmd
}

func (a *app) inspect(path string, key ed25519.PublicKey) error {
	f, err := os.Open(path)
	if err != nil {
		return fileError("open", path, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return fileError("look at", path, err)
	}
	if !st.Mode().IsRegular() {
		return snapferry.Errorf(snapferry.Invalid, "%s is not a file", path)
	}
	magic := make([]byte, len(recordMagic))
	if _, err := f.ReadAt(magic, 0); err == nil && string(magic) == recordMagic {
		return a.inspectRecord(f, path, st.Size(), key)
	}
	return a.inspectObject(f, path, st.Size())
}

// objectView is what inspect shows of an object.
type objectView struct {
	Path     string        `json:"path"`
	Size     int64         `json:"size"`
	Sound    bool          `json:"sound"`
	Segments []segmentView `json:"segments"`
	Damage   []string      `json:"damage,omitempty"`
}

type segmentView struct {
	Segment    string     `json:"segment"`
	Chain      string     `json:"chain,omitempty"`
	Kind       string     `json:"kind,omitempty"`
	Sealed     bool       `json:"sealed"`
	Generation uint32     `json:"generation"`
	Offset     int64      `json:"offset"`
	Length     int64      `json:"length"`
	Slots      []slotView `json:"slots"`
}

type slotView struct {
	Slot   uint16  `json:"slot"`
	Offset uint32  `json:"offset"`
	Length uint32  `json:"length"`
	Codec  string  `json:"codec,omitempty"`
	Raw    uint32  `json:"raw,omitempty"`
	Level  *uint8  `json:"level,omitempty"`
	Index  *uint64 `json:"index,omitempty"`
}

func (a *app) inspectObject(f *os.File, path string, size int64) error {
	scrub, err := segment.VerifyObject(f, size, nil)
	if scrub == nil {
		return snapferry.Errorf(snapferry.KindOf(err), "%s: %w", path, err)
	}
	v := objectView{Path: path, Size: size, Sound: err == nil, Segments: make([]segmentView, len(scrub.Segments))}
	for i, s := range scrub.Segments {
		v.Segments[i] = viewSegment(s)
	}
	for _, d := range scrub.Damage {
		v.Damage = append(v.Damage, d.Error())
	}
	if perr := a.print(v, func(p *printer) { v.text(p) }); perr != nil {
		return perr
	}
	if err != nil {
		return snapferry.Errorf(snapferry.KindOf(err), "%s: %w", path, err)
	}
	return nil
}

func viewSegment(s segment.ScrubSegment) segmentView {
	v := segmentView{Segment: s.Segment.String(), Generation: s.Generation, Offset: s.Offset, Length: s.Length, Slots: []slotView{}}
	if s.Footer == nil {
		return v
	}
	v.Chain, v.Kind, v.Sealed = s.Footer.Chain.String(), s.Footer.Kind.String(), s.Footer.Sealed
	for i := range s.Footer.Len() {
		e := s.Footer.At(i)
		x := slotView{Slot: e.Slot, Offset: e.Offset, Length: e.Length}
		if s.Footer.HasInfo() {
			x.Codec, x.Raw, x.Level, x.Index = e.Info.Codec.String(), e.Info.RawLength, &e.Info.Level, &e.Info.Index
		}
		v.Slots = append(v.Slots, x)
	}
	return v
}

func (v objectView) text(p *printer) {
	p.line("object %s, %s, %d segments", v.Path, bytesText(v.Size), len(v.Segments))
	for _, s := range v.Segments {
		p.line("\nsegment %s", s.Segment)
		sealed := "no"
		if s.Sealed {
			sealed = "yes"
		}
		p.fields("  kind", s.Kind, "  chain", s.Chain, "  encrypted", sealed, "  generation", fmt.Sprint(s.Generation),
			"  offset", fmt.Sprint(s.Offset), "  length", bytesText(s.Length), "  slots", fmt.Sprint(len(s.Slots)))
		rows := make([][]string, len(s.Slots))
		for i, x := range s.Slots {
			rows[i] = []string{fmt.Sprint(x.Slot), fmt.Sprint(x.Offset), fmt.Sprint(x.Length), "", "", "", ""}
			if x.Index != nil {
				copy(rows[i][3:], []string{x.Codec, fmt.Sprint(x.Raw), fmt.Sprint(*x.Level), fmt.Sprint(*x.Index)})
			}
		}
		p.table([]string{"  SLOT", "OFFSET", "LENGTH", "CODEC", "RAW", "LEVEL", "INDEX"}, indent(rows))
	}
	if len(v.Damage) > 0 {
		p.line("")
	}
	for _, d := range v.Damage {
		p.line("damage: %s", d)
	}
}

func indent(rows [][]string) [][]string {
	for _, r := range rows {
		r[0] = "  " + r[0]
	}
	return rows
}

// recordView is what inspect shows of a version record.
type recordView struct {
	Path      string         `json:"path"`
	Signature string         `json:"signature"` // good, or not verified
	Version   string         `json:"version"`
	Revision  uint64         `json:"revision"`
	State     string         `json:"state"`
	Chain     string         `json:"chain"`
	Parent    string         `json:"parent,omitempty"`
	Forward   string         `json:"forward,omitempty"`
	Region    string         `json:"region"`
	Account   string         `json:"account"`
	Volume    string         `json:"volume"`
	Size      int64          `json:"size"`
	Blocks    uint64         `json:"blocks"`
	Created   string         `json:"created"`
	Token     uint64         `json:"token"`
	Start     uint64         `json:"incarnation"`
	Digest    string         `json:"digest,omitempty"`
	Root      int            `json:"root_bytes"`
	Holds     []recordedHold `json:"holds"`
}

type recordedHold struct {
	Kind  string `json:"kind"`
	Owner string `json:"owner"`
	Name  string `json:"name,omitempty"`
}

func (a *app) inspectRecord(f *os.File, path string, size int64, key ed25519.PublicKey) error {
	if size > record.MaxSize {
		return snapferry.Errorf(snapferry.Corrupt, "%s has %d bytes, more than a version record can have", path, size)
	}
	p := make([]byte, size)
	if _, err := f.ReadAt(p, 0); err != nil {
		return fileError("read", path, err)
	}
	r, signature, err := decodeRecord(p, key)
	if err != nil {
		return snapferry.Errorf(snapferry.KindOf(err), "%s: %w", path, err)
	}
	v := recordView{
		Path: path, Signature: signature, Version: r.Version.String(), Revision: r.Revision, State: string(r.State), Chain: r.Chain.String(),
		Region: string(r.Region), Account: string(r.Account), Volume: string(r.Volume), Size: r.Size, Blocks: r.Blocks,
		Created: timeText(r.Created), Token: r.Token, Start: r.Incarnation, Root: len(r.Root), Holds: []recordedHold{},
	}
	if !r.Parent.IsZero() {
		v.Parent = r.Parent.String()
	}
	if !r.Forward.IsZero() {
		v.Forward = r.Forward.String()
	}
	if !r.Digest.IsZero() {
		v.Digest = r.Digest.String()
	}
	for _, h := range r.Holds {
		v.Holds = append(v.Holds, recordedHold{string(h.Kind), h.Owner, h.Name})
	}
	return a.print(v, func(p *printer) { v.text(p) })
}

// decodeRecord reads a record. Without a key the signature is not verified:
// the content is signed again with a key of the moment, so that all else is
// checked as strictly as ever.
func decodeRecord(p []byte, key ed25519.PublicKey) (r *record.Record, signature string, err error) {
	if len(key) > 0 {
		r, err = record.Decode(p, key, nil)
		return r, "good", err
	}
	if len(p) < ed25519.SignatureSize {
		return nil, "", snapferry.Errorf(snapferry.Corrupt, "a version record of %d bytes", len(p))
	}
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, "", errors.Join(errors.New("make a key"), err)
	}
	content := bytes.Clone(p[:len(p)-ed25519.SignatureSize])
	r, err = record.Decode(append(content, ed25519.Sign(private, content)...), public, nil)
	return r, "not verified", err
}

func (v recordView) text(p *printer) {
	p.line("version record %s", v.Path)
	p.fields("signature", v.Signature, "version", v.Version, "revision", fmt.Sprint(v.Revision), "state", v.State, "chain", v.Chain,
		"parent", v.Parent, "forward", v.Forward, "region", v.Region, "account", v.Account, "volume", v.Volume, "size", bytesText(v.Size),
		"blocks", fmt.Sprint(v.Blocks), "created", v.Created, "incarnation", fmt.Sprint(v.Start), "token", fmt.Sprint(v.Token),
		"digest", v.Digest, "root", bytesText(int64(v.Root)))
	for _, h := range v.Holds {
		p.fields("hold", h.Kind+" "+h.Owner+" "+h.Name)
	}
}
