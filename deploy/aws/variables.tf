variable "environment" {
  description = "ENVIRONMENT of the services: part of every server's name and of its tag `environment`."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9]([A-Za-z0-9-]{0,30}[A-Za-z0-9])?$", var.environment))
    error_message = "Letters, digits and hyphens, at most 32, neither first nor last a hyphen."
  }
}

variable "namespace" {
  description = "NAMESPACE of the services: settings live under /<namespace>/ops/ in SSM and in the secret <namespace>/ops/secrets."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*$", var.namespace))
    error_message = "Names separated by single slashes, such as voiceai/staging."
  }
}

variable "trusted_services" {
  description = "Who may take the roles: ec2.amazonaws.com for instance profiles, ecs-tasks.amazonaws.com for tasks, pods.eks.amazonaws.com for EKS."
  type        = list(string)
  default     = ["ec2.amazonaws.com"]
}

variable "kms_key_arn" {
  description = "Key of the parameters, secrets and buckets. Empty: the keys that AWS manages."
  type        = string
  default     = ""
}

variable "scales_on_aws" {
  description = "True where server groups use the provider `aws`: the scaler's role may then run and end instances."
  type        = bool
  default     = false
}

variable "server_role_arns" {
  description = "Roles of the instance profiles that new servers get (scalingConfig.iamInstanceProfile)."
  type        = list(string)
  default     = []
}

variable "server_subnet_arns" {
  description = "Subnets that servers may be made in. Empty: every subnet of the account and region."
  type        = list(string)
  default     = []
}

variable "target_group_arns" {
  description = "Target groups that servers are registered with (scalingConfig.targetGroupArns)."
  type        = list(string)
  default     = []
}

variable "backup_bucket" {
  description = "S3_BUCKET: name of the bucket of the database backups."
  type        = string
}

variable "backup_retention_days" {
  description = "How long backups are kept. The service deletes none."
  type        = number
  default     = 35
}

variable "exports_bucket" {
  description = "EXPORTS_S3_BUCKET: name of the bucket of tenants' exports. Empty: none is made."
  type        = string
  default     = ""
}

variable "exports_retention_days" {
  description = "How long an export can be fetched."
  type        = number
  default     = 7
}

variable "recordings_bucket_arn" {
  description = "ARN of the bucket of recordings, which the platform owns. Empty: no access is given."
  type        = string
  default     = ""
}

variable "mail_domain" {
  description = "Domain that mail is sent from by SES. Empty: no identity is made."
  type        = string
  default     = ""
}

variable "feedback_endpoint" {
  description = "HTTPS address to which SNS delivers bounces and complaints, behind which voiceai-tasker's public listener stands. Empty: no subscription."
  type        = string
  default     = ""

  validation {
    condition     = var.feedback_endpoint == "" || startswith(var.feedback_endpoint, "https://")
    error_message = "SNS feedback is taken by HTTPS alone."
  }
}

variable "tags" {
  description = "Further tags of everything made here."
  type        = map(string)
  default     = {}
}
