#!/usr/bin/env bash
# Once per AWS account: the two instance profiles that cluster.yaml names. Needs the AWS command
# line and the right to make roles.
#
#     docs/cluster/aws-iam.sh BUCKET      a bucket that exists, for results and data
#
# labtune-worker may read and write the bucket; labtune-head may also start and end instances, give
# workers their profile, and look up the newest image. Ray would make one role by itself, with full
# access to EC2 and to every bucket, and give workers none.
set -euo pipefail
bucket=${1:?usage: docs/cluster/aws-iam.sh BUCKET}
account=$(aws sts get-caller-identity --query Account --output text)
trust='{"Version": "2012-10-17", "Statement": [{"Effect": "Allow",
  "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}]}'
bucket_policy='{"Version": "2012-10-17", "Statement": [
  {"Effect": "Allow", "Action": ["s3:ListBucket", "s3:GetBucketLocation"],
   "Resource": "arn:aws:s3:::'$bucket'"},
  {"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject",
                                 "s3:AbortMultipartUpload"],
   "Resource": "arn:aws:s3:::'$bucket'/*"}]}'
head_policy='{"Version": "2012-10-17", "Statement": [
  {"Effect": "Allow", "Action": ["ec2:Describe*", "ec2:RunInstances", "ec2:TerminateInstances",
                                 "ec2:StopInstances", "ec2:StartInstances", "ec2:CreateTags",
                                 "ec2:DeleteTags"],
   "Resource": "*"},
  {"Effect": "Allow", "Action": ["ssm:GetParameter", "ssm:GetParameters"],
   "Resource": "arn:aws:ssm:*::parameter/aws/service/deeplearning/*"},
  {"Effect": "Allow", "Action": "iam:GetInstanceProfile",
   "Resource": "arn:aws:iam::'$account':instance-profile/labtune-*"},
  {"Effect": "Allow", "Action": "iam:PassRole",
   "Resource": "arn:aws:iam::'$account':role/labtune-worker"}]}'

for role in labtune-head labtune-worker; do
    aws iam create-role --role-name "$role" --assume-role-policy-document "$trust" >/dev/null
    aws iam put-role-policy --role-name "$role" --policy-name bucket \
        --policy-document "$bucket_policy"
    aws iam create-instance-profile --instance-profile-name "$role" >/dev/null
    aws iam add-role-to-instance-profile --instance-profile-name "$role" --role-name "$role"
done
aws iam put-role-policy --role-name labtune-head --policy-name cluster \
    --policy-document "$head_policy"
# The account's first spot instance needs this role; it may be there already.
aws iam create-service-linked-role --aws-service-name spot.amazonaws.com >/dev/null 2>&1 || true
echo "made labtune-head and labtune-worker for bucket $bucket"
