// Package peer is the connection between regions: the server and the client of
// the transfer protocol. It is HTTP/1.1 over mutual TLS 1.3; requests and
// short answers are JSON, nodes and blocks come as binary streams.
// docs/format/peer.md has the requests and the layout of the streams.
//
// Nothing that arrives is trusted here: lengths are bounded before anything is
// allocated, and the copy engine checks every node and block against the
// digest it was promised.
package peer

import (
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/blockmap"
	"github.com/snapferry/snapferry/digest"
	"github.com/snapferry/snapferry/internal/transfer"
)

// Protocol is the version of the protocol; regions must have the same.
const Protocol = 1

const (
	headerProtocol = "Snapferry-Protocol"
	headerAccount  = "Snapferry-Account"

	pathHello    = "/peer/v1/hello"
	pathDescribe = "/peer/v1/describe"
	pathPin      = "/peer/v1/pin"
	pathRelease  = "/peer/v1/release"
	pathMembers  = "/peer/v1/members"
	pathRenew    = "/peer/v1/renew"
	pathPins     = "/peer/v1/pins"
	pathNodes    = "/peer/v1/nodes"
	pathBlocks   = "/peer/v1/blocks"

	// maxRequest bounds the body of a request, and maxReply a JSON answer.
	maxRequest = 1 << 20
	maxReply   = 1 << 20
	// maxAsk bounds how many nodes or leaves one request may ask for.
	maxAsk = 256
)

// failure is the JSON form of an error.
type failure struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

func (f failure) err() error {
	e := snapferry.Errorf(snapferry.ParseKind(f.Kind), "%s", f.Message)
	e.Hint = f.Hint
	return e
}

type describeRequest struct {
	Snapshot snapferry.SnapshotID `json:"snapshot"`
}

// description is the JSON form of transfer.Description.
type description struct {
	Snapshot  snapferry.SnapshotID `json:"snapshot"`
	Size      int64                `json:"size"`
	Digest    digest.Digest        `json:"digest"`
	Present   int64                `json:"present"`
	Root      []byte               `json:"root,omitempty"` // logical node
	Name      string               `json:"name,omitempty"`
	Created   time.Time            `json:"created"`
	Volume    string               `json:"volume"`
	VolumeID  snapferry.VolumeID   `json:"volume_id"`
	Chain     string               `json:"chain"`
	Encrypted bool                 `json:"encrypted,omitempty"`
	Lineage   []digest.Digest      `json:"lineage"`
}

func describe(d transfer.Description) description {
	x := description{
		Snapshot: d.Snapshot, Size: d.Size, Digest: d.Digest, Present: d.Present, Name: d.Name, Created: d.Created,
		Volume: d.Volume, VolumeID: d.VolumeID, Chain: d.Chain.String(), Encrypted: d.Encrypted, Lineage: d.Lineage,
	}
	if d.Root != nil {
		x.Root = d.Root.AppendLogical(nil)
	}
	return x
}

func (x description) decode() (d transfer.Description, err error) {
	d = transfer.Description{
		Snapshot: x.Snapshot, Name: x.Name, Created: x.Created, Volume: x.Volume, VolumeID: x.VolumeID,
		Info: transfer.Info{Size: x.Size, Digest: x.Digest, Present: x.Present}, Lineage: x.Lineage, Encrypted: x.Encrypted,
	}
	if len(d.Lineage) > transfer.MaxLineage {
		d.Lineage = d.Lineage[:transfer.MaxLineage]
	}
	if d.Chain, err = snapferry.ParseChainID(x.Chain); err != nil {
		return d, err
	}
	if err := snapferry.CheckVolumeName(d.Volume); err != nil {
		return d, err
	}
	if len(x.Root) > 0 {
		if d.Root, err = blockmap.DecodeLogical(x.Root); err != nil {
			return d, err
		}
		d.Present = int64(d.Root.Blocks()) * snapferry.BlockSize
	} else {
		d.Present = 0
	}
	return d, d.Check()
}

type membersRequest struct {
	Set snapferry.SetID `json:"set"`
}

type membersReply struct {
	Snapshots []snapferry.SnapshotID `json:"snapshots"`
}

type releaseRequest struct {
	transfer.Handle
	Ending snapferry.Ending `json:"ending,omitempty"` // of the copy
}

type pinsRequest struct {
	After string `json:"after,omitempty"`
}

type pinsReply struct {
	Pins []transfer.Held `json:"pins"`
}

type nodesRequest struct {
	transfer.Handle
	At []position `json:"at"`
}

type position struct {
	Level uint8  `json:"level"`
	Index uint64 `json:"index"`
}

type blocksRequest struct {
	transfer.Handle
	Want []want `json:"want"`
}

type want struct {
	Leaf   uint64 `json:"leaf"`
	Blocks []byte `json:"blocks"` // bitmap of 32 bytes, block i is bit i%8 of byte i/8
}
