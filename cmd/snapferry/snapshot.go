package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
)

func (a *app) snapshotCommand() *cobra.Command {
	return group("snapshot", "Make, copy and bring back snapshots",
		a.importCommand(), a.createCommand(), a.listCommand(), a.showCommand(), a.waitCommand(), a.deleteCommand(), a.usageCommand(), a.forkCommand(), a.diffCommand(),
		a.exportCommand(), a.planCopyCommand(), a.copyCommand())
}

// labelFlags are the flags of what a caller writes on a new snapshot.
type labelFlags struct {
	labels client.Labels
	tags   []string
}

func (l *labelFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&l.labels.Name, "name", "", "name of the new snapshot")
	f.StringVar(&l.labels.Description, "description", "", "description of the new snapshot")
	f.StringArrayVar(&l.tags, "tag", nil, "tag as key=value; may be repeated")
	f.IntVar(&l.labels.RetentionDays, "retention-days", 0, "keep the snapshot for this many days (default: for ever)")
}

func (l *labelFlags) get() (client.Labels, error) {
	if l.labels.RetentionDays < 0 {
		return l.labels, snapferry.Errorf(snapferry.Invalid, "retention of %d days is not possible", l.labels.RetentionDays).
			WithHint("give 1 or more days, or leave --retention-days out to keep the snapshot for ever")
	}
	var err error
	l.labels.Tags, err = parseTags(l.tags)
	return l.labels, err
}

// parseTags reads tags as they are given: key=value.
func parseTags(given []string) (tags snapferry.Tags, err error) {
	for _, t := range given {
		key, value, ok := strings.Cut(t, "=")
		if !ok || key == "" {
			return nil, snapferry.Errorf(snapferry.Invalid, "tag %q is not key=value", t)
		}
		if _, twice := tags[key]; twice {
			return nil, snapferry.Errorf(snapferry.Invalid, "tag %q is given twice", key)
		}
		if tags == nil {
			tags = snapferry.Tags{}
		}
		tags[key] = value
	}
	return tags, tags.Check()
}

// showSnapshot prints one snapshot.
func (a *app) showSnapshot(s snapferry.Snapshot) error {
	return a.print(s, func(p *printer) {
		source, progress, digest := "", "", ""
		if s.Source != nil {
			source = fmt.Sprintf("%s in %s", s.Source.Snapshot, s.Source.Region)
		}
		if s.Progress != nil {
			progress = progressText(s.Progress)
		}
		if !s.Digest.IsZero() {
			digest = s.Digest.String()
		}
		p.fields("id", string(s.ID), "region", string(s.Region), "volume", s.Volume, "name", s.Name, "description", s.Description,
			"tags", tagText(s.Tags), "state", string(s.State), "reason", s.Reason, "hint", s.Hint, "pinned by", holdersText(s.PinnedBy), "queue", queueText(s.Queue), "progress", progress,
			"size", bytesText(s.Size), "digest", digest, "set", setText(s), "key", string(s.Key), "parent", string(s.Parent), "source", source, "copy", string(s.Copy),
			"created", timeText(s.Created), "retain until", timeText(s.RetainUntil),
			"present", countText(s.Counts.Present), "changed", countText(s.Counts.Changed), "read", countText(s.Counts.Read),
			"moved", countText(s.Counts.Moved), "stored", countText(s.Counts.Stored), "reused", countText(s.Counts.Reused),
			"stored again", countText(s.Counts.Lent), "repeated", countText(s.Counts.Repeated))
	})
}

func setText(s snapferry.Snapshot) string {
	if s.Set == "" {
		return ""
	}
	return fmt.Sprintf("%s of %d snapshots", s.Set, s.SetSize)
}

func countText(n int64) string {
	if n == 0 {
		return ""
	}
	return bytesText(n)
}

func tagText(t snapferry.Tags) string {
	pairs := make([]string, 0, len(t))
	for k, v := range t {
		pairs = append(pairs, k+"="+v)
	}
	slices.Sort(pairs)
	return strings.Join(pairs, " ")
}

// settled prints a snapshot that was waited for; one that failed is an error.
func (a *app) settled(s snapferry.Snapshot) error {
	if err := a.showSnapshot(s); err != nil {
		return err
	}
	return notReady(s)
}

// notReady is why a snapshot that was waited for is not ready, or nil.
func notReady(s snapferry.Snapshot) error {
	switch s.State {
	case snapferry.SnapshotFailed:
		err := snapferry.Errorf(snapferry.Cancelled, "snapshot %s failed: %s", s.ID, s.Reason)
		err.Hint = s.Hint
		return err
	case snapferry.SnapshotDeleting:
		return snapferry.Errorf(snapferry.Cancelled, "snapshot %s is being deleted", s.ID)
	}
	return nil
}

// parseSnapshots checks the spelling of ids.
func parseSnapshots(args ...string) ([]snapferry.SnapshotID, error) {
	ids := make([]snapferry.SnapshotID, len(args))
	for i, s := range args {
		var err error
		if ids[i], err = snapferry.ParseSnapshotID(s); err != nil {
			return nil, err
		}
	}
	return ids, nil
}
