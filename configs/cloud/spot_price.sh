#!/usr/bin/env bash
# Prints what this instance's type costs as a spot instance in its zone now, in dollars an hour: for `--set stop.price=`.
# EC2's metadata has type and zone, and no price; AWS's own program knows that (permission: ec2:DescribeSpotPriceHistory).
set -euo pipefail

fail() { printf 'spot_price.sh: %s\n' "$*" >&2; exit 1; }

command -v curl >/dev/null || fail "curl is not installed"
command -v aws >/dev/null || fail "aws is not installed: https://docs.aws.amazon.com/cli/ has it; or give the price yourself"
service=${AWS_EC2_METADATA_SERVICE_ENDPOINT:-http://169.254.169.254}
service=${service%/}
token=$(curl -sf -m 2 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$service/latest/api/token") ||
    fail "no instance metadata: this is no EC2 instance, or it hides them"
ask() { curl -sf -m 2 -H "X-aws-ec2-metadata-token: $token" "$service/latest/meta-data/$1"; }
type=$(ask instance-type) && zone=$(ask placement/availability-zone) && region=$(ask placement/region) ||
    fail "the instance's metadata do not say its type and zone"

price=$(aws ec2 describe-spot-price-history --region "$region" --availability-zone "$zone" --instance-types "$type" \
    --product-descriptions Linux/UNIX --start-time "$(date -u +%Y-%m-%dT%H:%M:%SZ)" --max-items 1 \
    --query 'SpotPriceHistory[0].SpotPrice' --output text) || fail "aws was not told the price of $type in $zone"
case $price in
'' | None* | *[!0-9.]*) fail "aws knows no spot price of $type in $zone" ;;
esac
printf '%s\n' "$price"
