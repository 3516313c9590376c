package main

import "fmt"

// newReport prices every question that docs/deploy.md answers.
func newReport(prices Prices, u Usage) (Report, error) {
	report := Report{Region: prices.Region, prices: prices}
	for _, question := range u.questions() {
		bill, err := prices.bill(question)
		if err != nil {
			return Report{}, err
		}
		report.Bills = append(report.Bills, bill)
	}
	return report, nil
}

type question struct {
	title, note string
	variant     bool
	amounts     amounts
}

func (u Usage) questions() []question {
	busy := u.builds(1000, u.Builder.BuildsBusy)
	return []question{
		{"1,000 builds in busy hours", u.busyNote(), false, busy},
		{"The same on Spot", "Set `Spot` to `true`. A task that AWS takes back gives its build back to the queue.", true, spot(busy)},
		{"1,000 builds, each from rest", "The dearest way: every build starts a builder of its own, and nobody uses its idle minutes.", true, u.builds(1000, 1)},
		{"One million polls", u.pollNote(), false, amounts{}.add(u.poll(u.Record.DoneKB), 1e6)},
		{"A month at rest", u.restNote(), false, u.idle()},
		{"The worst month under the default limits, without attackers", u.worstNote(), false, u.busiest()},
		{"The worst month, attackers included", u.attackNote(), false, u.busiest().add(u.attacked(u.Worst.RequestsPerSecond), 1)},
		{"The worst month, attackers as fast as API Gateway lets them", u.throttleNote(), true, u.busiest().add(u.attacked(u.Worst.GatewayPerSecond), 1)},
		{"The worst month, attackers stopped by WAF", fmt.Sprintf("The %v requests a second again, all of them blocked by `infra/waf.yaml`. CloudFront does not charge for what WAF blocks, WAF does.", u.Worst.RequestsPerSecond), true, u.busiest().add(u.blocked(), 1)},
	}
}

func (u Usage) busyNote() string {
	b, r := u.Build, u.Builder
	return fmt.Sprintf("%v vCPU and %v GB, %v s of `make` and %v s around it, %v builds for each start (%v s start-up, %v s unpacking, %v s idle at the end). "+
		"Each build: one POST, %v polls, %v MB stored for %v days, all of it downloaded %v ×. %v ImageBuilders of %v MB kept for %v days.",
		r.VCPU, r.MemoryGB, b.MakeS, b.OtherS, r.BuildsBusy, r.StartupS, r.UnpackS, r.IdleS,
		b.Polls, b.ImageMB, b.KeptDays, b.Downloads, u.Archives.TargetsIn1000, u.Archives.MB, u.Archives.KeptDays)
}

func (u Usage) pollNote() string {
	return fmt.Sprintf("A poll, or a POST of what is known, is one request and one consistent read; here of a build that is done, whose record has %v KB.", u.Record.DoneKB)
}

func (u Usage) restNote() string {
	return fmt.Sprintf("The housekeeper every %v minutes, %v polls by passers-by, %.2f GB in S3 (%v MB catalogue and keys, %v MB function packages), "+
		"%v builder images of %v MB in ECR, %v alarms, %v metrics, %v dashboard(s). No ImageBuilder and no image is left after two weeks without a build. "+
		"No KMS key, no NAT gateway, no secret in Secrets Manager, no load balancer. The aim is 1 USD at most in the last column.",
		u.Housekeeper.EveryMin, number(u.Rest.APICalls), u.storedGB(), u.Rest.CatalogueMB, u.Rest.ArtifactsMB,
		u.Rest.Containers, u.Rest.ContainerMB, u.Rest.Alarms, u.Rest.Metrics, u.Rest.Dashboards)
}

func (u Usage) worstNote() string {
	return fmt.Sprintf("MaxBuilders (%v) run without a pause, BuildsPerDay (%v) are used up every day, each build is polled, stored and downloaded once.",
		u.Worst.Builders, number(u.Worst.BuildsPerDay))
}

func (u Usage) attackNote() string {
	return fmt.Sprintf("%v requests a second without a pause on top, half of them polls, half POSTs that the limits refuse. They start no build beyond the limits above.",
		u.Worst.RequestsPerSecond)
}

func (u Usage) throttleNote() string {
	return fmt.Sprintf("%v requests a second, the throttle of the stage. Priced at the first step of each price, so a little too high.",
		number(u.Worst.GatewayPerSecond))
}
