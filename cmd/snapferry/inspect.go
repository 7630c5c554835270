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
	"github.com/snapferry/snapferry/dump"
	"github.com/snapferry/snapferry/record"
	"github.com/snapferry/snapferry/segment"
)

// What files of a bucket begin with, of one length.
const (
	recordMagic = "SFREC"
	chainMagic  = "SFCHN"
	dumpMagic   = "SFDMP"
)

func (a *app) inspectCommand() *cobra.Command {
	var key string
	cmd := &cobra.Command{
		Use: "inspect OBJECT", Short: "Show what is in a file of a bucket, and verify its checksums", Args: cobra.ExactArgs(1),
		Long: `Show what is in a file of a bucket: an object with its segments and their frames,
a version record, the description of a chain, or a dump of metadata, which is
sealed: of that only the number. No region and no key is needed; the checksums of
an object are verified. The signature of a record or a description is verified
when --key gives the region's public key, which the region logs when it starts.`,
		RunE: func(_ *cobra.Command, args []string) error {
			public, err := hex.DecodeString(key)
			if err != nil || key != "" && len(public) != ed25519.PublicKeySize {
				return snapferry.Errorf(snapferry.Invalid, "--key is not %d bytes in hexadecimal", ed25519.PublicKeySize)
			}
			return a.inspect(args[0], public)
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "public key of the region, in hexadecimal, to verify a signature with")
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
	if _, err := f.ReadAt(magic, 0); err != nil {
		magic = nil // too short for anything: an object says so
	}
	switch string(magic) {
	case recordMagic:
		return a.inspectRecord(f, path, st.Size(), key)
	case chainMagic:
		return a.inspectChain(f, path, st.Size(), key)
	case dumpMagic:
		return a.inspectDump(f, path, st.Size())
	}
	return a.inspectObject(f, path, st.Size())
}

// readWhole reads a file that is to be decoded in one piece.
func readWhole(f *os.File, path string, size, most int64) ([]byte, error) {
	if size > most {
		return nil, snapferry.Errorf(snapferry.Corrupt, "%s has %d bytes, more than its kind can have, %d", path, size, most)
	}
	p := make([]byte, size)
	if _, err := f.ReadAt(p, 0); err != nil {
		return nil, fileError("read", path, err)
	}
	return p, nil
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
	p, err := readWhole(f, path, size, record.MaxSize)
	if err != nil {
		return err
	}
	r, signature, err := verified(p, key, func(p []byte, key ed25519.PublicKey) (*record.Record, error) { return record.Decode(p, key, nil) })
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

// verified decodes what ends with a signature. Without a key the signature is not
// verified: the content is signed again with a key of the moment, so that all else
// is checked as strictly as ever.
func verified[T any](p []byte, key ed25519.PublicKey, decode func([]byte, ed25519.PublicKey) (T, error)) (got T, signature string, err error) {
	if len(key) > 0 {
		got, err = decode(p, key)
		return got, "good", err
	}
	if len(p) < ed25519.SignatureSize {
		return got, "", snapferry.Errorf(snapferry.Corrupt, "%d bytes, too few for a signature", len(p))
	}
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return got, "", errors.Join(errors.New("make a key"), err)
	}
	content := bytes.Clone(p[:len(p)-ed25519.SignatureSize])
	got, err = decode(append(content, ed25519.Sign(private, content)...), public)
	return got, "not verified", err
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

// chainView is what inspect shows of the description of a chain.
type chainView struct {
	Path        string `json:"path"`
	Signature   string `json:"signature"` // good, or not verified
	Chain       string `json:"chain"`
	Number      uint64 `json:"number"`
	Region      string `json:"region"`
	Account     string `json:"account"`
	AccountName string `json:"account_name"`
	Algorithm   string `json:"algorithm"`
	Created     string `json:"created"`
	Origin      string `json:"origin,omitempty"` // region and chain
	Encrypted   bool   `json:"encrypted"`
}

func (a *app) inspectChain(f *os.File, path string, size int64, key ed25519.PublicKey) error {
	p, err := readWhole(f, path, size, record.MaxChainSize)
	if err != nil {
		return err
	}
	c, signature, err := verified(p, key, func(p []byte, key ed25519.PublicKey) (*record.Chain, error) {
		return record.DecodeChain(p, []ed25519.PublicKey{key})
	})
	if err != nil {
		return snapferry.Errorf(snapferry.KindOf(err), "%s: %w", path, err)
	}
	v := chainView{
		Path: path, Signature: signature, Chain: c.ID.String(), Number: c.Number, Region: string(c.Region), Account: string(c.Account),
		AccountName: c.AccountName, Algorithm: c.Algorithm.String(), Created: timeText(c.Created), Encrypted: len(c.WrappedKey) > 0,
	}
	if c.OriginRegion != "" {
		v.Origin = string(c.OriginRegion) + " " + c.OriginChain.String()
	}
	return a.print(v, func(p *printer) {
		p.line("description of a chain %s", v.Path)
		p.fields("signature", v.Signature, "chain", v.Chain, "number", fmt.Sprint(v.Number), "region", v.Region, "account", v.Account+" "+v.AccountName,
			"digests", v.Algorithm, "created", v.Created, "origin", v.Origin, "encrypted", fmt.Sprint(v.Encrypted))
	})
}

// dumpView is what inspect shows of a dump of metadata.
type dumpView struct {
	Path   string `json:"path"`
	Number uint64 `json:"number"`
	Size   int64  `json:"size"`
}

func (a *app) inspectDump(f *os.File, path string, size int64) error {
	p, err := readWhole(f, path, size, dump.MaxSize)
	if err != nil {
		return err
	}
	n, err := dump.Number(p)
	if err != nil {
		return snapferry.Errorf(snapferry.KindOf(err), "%s: %w", path, err)
	}
	v := dumpView{path, n, size}
	return a.print(v, func(p *printer) {
		p.line("dump of metadata %s", v.Path)
		p.fields("number", fmt.Sprint(v.Number), "size", bytesText(v.Size), "content", "sealed with the key of the region (region.key)")
	})
}
