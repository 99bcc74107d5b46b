# Skeletons: Terraform makes them, people fill them in, and Terraform leaves their values alone. No secret stands in its state.

resource "aws_ssm_parameter" "setting" {
  for_each = {
    S3_BUCKET = var.backup_bucket
    S3_REGION = local.region
  }

  name  = "/${var.namespace}/ops/${each.key}"
  type  = "String"
  value = each.value
  tags  = local.tags

  lifecycle {
    ignore_changes = [value]
  }
}

resource "aws_secretsmanager_secret" "secrets" {
  name                    = "${var.namespace}/ops/secrets"
  description             = "A JSON object of settings: REDIS_URL or REDIS_PASSWORD, DATABASE_URL or DATABASE_PASSWORD, and what else `config manifest` marks as secret."
  kms_key_id              = local.kms ? var.kms_key_arn : null
  recovery_window_in_days = 30
  tags                    = local.tags
}
