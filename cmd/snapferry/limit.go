package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
)

func (a *app) limitCommand() *cobra.Command {
	return group("limit", "How many bytes a second may cross into a region", a.limitListCommand(), a.limitSetCommand())
}

func (a *app) limitListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the limits of links and accounts", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, _, err := a.connect("")
			if err != nil {
				return err
			}
			defer c.Close()
			all, err := c.Limits(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(client.LimitList{Limits: all}, func(p *printer) { limitsText(p, all) })
		},
	}
}

func limitsText(p *printer, all []snapferry.Limit) {
	rows := make([][]string, 0, len(all))
	for _, l := range all {
		windows := make([]string, 0, len(l.Windows))
		for _, w := range l.Windows {
			windows = append(windows, fmt.Sprintf("%s-%s=%s", w.From, w.To, rateText(w.Rate)))
		}
		rows = append(rows, []string{l.Scope, rateText(l.Now), rateText(l.Rate), strings.Join(windows, " "), timeText(l.Set)})
	}
	p.table([]string{"SCOPE", "NOW", "RATE", "WINDOWS", "SET"}, rows)
}

func rateText(rate int64) string {
	if rate == 0 {
		return "no limit"
	}
	return short(rate) + "/s"
}

func (a *app) limitSetCommand() *cobra.Command {
	var rate string
	var windows []string
	cmd := &cobra.Command{
		Use: "set SCOPE --rate RATE [--window HH:MM-HH:MM=RATE]...", Short: "Limit what crosses, also of copies under way", Args: cobra.ExactArgs(1),
		Long: `Limit how many bytes a second may cross into the region, for all copies of a scope
together, also those that are under way. SCOPE is link/REGION, for what comes from
a region; account, for what comes for the own account; or account/NAME. All but
account are for operators. A window is a part of each day with another rate, by
the clock of the region's machine. Rate 0 without windows takes the limit away.`,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			l := snapferry.Limit{Scope: args[0]}
			if l.Rate, err = parseSize(rate); err != nil {
				return err
			}
			for _, s := range windows {
				w, err := parseWindow(s)
				if err != nil {
					return err
				}
				l.Windows = append(l.Windows, w)
			}
			c, _, err := a.connect("")
			if err != nil {
				return err
			}
			defer c.Close()
			if err := c.SetLimit(cmd.Context(), l); err != nil {
				return err
			}
			all, err := c.Limits(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(client.LimitList{Limits: all}, func(p *printer) { limitsText(p, all) })
		},
	}
	cmd.Flags().StringVar(&rate, "rate", "0", "bytes per second outside of the windows, as 50M; 0: no limit")
	cmd.Flags().StringArrayVar(&windows, "window", nil, "part of each day with another rate, as 22:00-06:00=200M; may be repeated")
	return cmd
}

// parseWindow reads a window as it is given: 22:00-06:00=200M.
func parseWindow(s string) (w snapferry.LimitWindow, err error) {
	times, rate, ok := strings.Cut(s, "=")
	from, to, ok2 := strings.Cut(times, "-")
	if !ok || !ok2 {
		return w, snapferry.Errorf(snapferry.Invalid, "%q is not a window", s).WithHint("write it like 22:00-06:00=200M")
	}
	w.From, w.To = from, to
	w.Rate, err = parseSize(rate)
	return w, err
}
